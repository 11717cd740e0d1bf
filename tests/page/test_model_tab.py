from playwright.sync_api import expect

QUERY, FF = "trf_blocks.0.att.W_query", "trf_blocks.0.ff"


def row(page, path, side="after"):
    return page.locator(f"[data-side={side}] [data-path='{path}']")


def set_rank(page, rank):
    box = page.get_by_label("number input for Rank r")
    box.fill(str(rank))
    box.press("Enter")


def test_the_labs_numbers_stand_on_top(visit):
    page = visit("Model")
    stats = page.locator("#model-stats")
    for number in ("1,328,642", "125,768,450", "1.06%"):
        expect(stats).to_contain_text(number)
    expect(row(page, QUERY)).to_contain_text("+12,288")
    expect(row(page, "out_head")).to_contain_text("new 768 → 2")
    expect(row(page, QUERY, "before")).not_to_contain_text("LoRA")


def test_the_numbers_are_read_out(visit):
    """By a region that stays while its text changes: one that is put in with it is not read."""
    page, said = visit("Model"), "#model-said [role=status]"
    expect(page.locator(said)).to_have_text(
        "1,328,642 of 125,768,450 parameters are trained, 1.06%."
    )
    page.evaluate(f"document.querySelector('{said}').dataset.kept = 'yes'")
    set_rank(page, 16)
    expect(page.locator(said)).to_contain_text("2,655,746 of ")
    expect(page.locator(said)).to_have_attribute("data-kept", "yes")


def test_every_knob_redraws_the_stage(visit):
    """Rank, targets, head and scale are answered at once."""
    page = visit("Model")
    stats = page.locator("#model-stats")
    set_rank(page, 64)
    expect(stats).to_contain_text("10,616,832 numbers are LoRA")
    expect(page.locator("#model-scale")).to_contain_text("16 / 64 = 0.25")
    expect(page.locator("#picture")).to_contain_text("64 × (768 + 768) = 98,304")
    page.get_by_label("feed-forward in", exact=True).uncheck()
    expect(stats).to_contain_text("60 linear layers were replaced")
    page.get_by_label("Two-class head").uncheck()
    expect(row(page, "out_head")).to_contain_text("frozen")
    page.get_by_label("Rank-stabilised scale").check()
    expect(page.locator("#model-scale")).to_contain_text("16 / √64 = 2")


def test_a_refused_knob_says_why_and_leaves_the_stage(visit):
    page = visit("Model")
    names = ("query", "key", "value", "attention output", "feed-forward in", "feed-forward out")
    for name in names:
        page.get_by_label(name, exact=True).uncheck()
    expect(page.get_by_role("alert")).to_contain_text("Targets must name at least one of")
    expect(page.locator("#model-stats")).to_contain_text("12 linear layers were replaced")
    page.get_by_label("query", exact=True).check()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_opened_modules_stay_open_over_redraws(visit):
    page = visit("Model")
    inside = row(page, f"{FF}.layers")
    expect(inside).to_be_hidden()
    row(page, FF).click()
    expect(inside).to_be_visible()
    expect(row(page, f"{FF}.layers", "before")).to_be_visible()
    set_rank(page, 4)
    expect(page.locator("#model-stats")).to_contain_text("663,552 numbers are LoRA")
    expect(inside).to_be_visible()
    row(page, FF).locator(".fold").click()
    expect(inside).to_be_hidden()


def test_a_chosen_module_is_explained(visit):
    """Shapes, formula and the arithmetic of the count; the picture follows."""
    page = visit("Model")
    row(page, FF).click()
    row(page, f"{FF}.layers").click()
    row(page, f"{FF}.layers.2").click()
    module = page.locator("#module")
    expect(module).to_contain_text("LinearWithLoRA")
    expect(module).to_contain_text("2,360,064 + 30,720 = 2,390,784")
    expect(page.locator("#picture")).to_contain_text("A 3,072 × 8")
    row(page, f"{FF}.layers.2.lora").click()
    expect(module).to_contain_text("8 × (3,072 + 768) = 30,720")


def test_a_module_before_injection_is_explained_as_it_was(visit):
    """The output head that the new one replaces, and why it is counted a second time."""
    page = visit("Model")
    row(page, "out_head", "before").click()
    module = page.locator("#module")
    expect(module).to_contain_text("38,597,376")
    expect(module).to_contain_text("once, for tok_emb and for this")
    row(page, "out_head").click()
    expect(module).to_contain_text("1,538")


def test_the_tree_works_with_the_keys_alone(visit):
    """Down, right and left move and fold; Enter explains; the focus is never lost."""
    page = visit("Model")
    row(page, QUERY).focus()
    page.keyboard.press("ArrowRight")
    expect(row(page, f"{QUERY}.lora")).to_be_visible()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#module")).to_contain_text("LoRALayer")
    expect(row(page, f"{QUERY}.lora")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(row(page, QUERY)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(row(page, f"{QUERY}.lora")).to_be_hidden()
    page.keyboard.press("Home")
    expect(row(page, "")).to_be_focused()


def test_the_search_shows_what_it_finds_and_where(visit):
    """Hits and what they stand in; everything comes back when the search is emptied."""
    page = visit("Model")
    search = page.get_by_label("Search the tree")
    search.fill("loralayer")
    expect(page.locator(".found")).to_have_text("6 modules")
    expect(row(page, f"{FF}.layers.2.lora")).to_be_visible()
    expect(row(page, "tok_emb")).to_be_hidden()
    search.fill("no such module")
    expect(page.locator(".found")).to_have_text("0 modules")
    search.fill("")
    expect(row(page, "tok_emb")).to_be_visible()
    expect(row(page, f"{FF}.layers.2.lora")).to_be_hidden()


def test_a_search_can_be_folded(visit):
    """By click and by key alike; what was folded by hand is forgotten with the search."""
    page = visit("Model")
    search = page.get_by_label("Search the tree")
    search.fill("loralayer")
    outer, inner = row(page, FF), row(page, f"{FF}.layers")
    found = row(page, f"{FF}.layers.2.lora")
    outer.locator(".fold").click()
    expect(outer).to_have_attribute("aria-expanded", "false")
    for gone in (inner, found, row(page, f"{FF}.layers", "before")):
        expect(gone).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(outer).to_have_attribute("aria-expanded", "true")
    expect(found).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(inner).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(inner).to_have_attribute("aria-expanded", "false")
    expect(found).to_be_hidden()
    search.fill("loralaye")
    expect(found).to_be_visible()
    search.fill("")
    expect(inner).to_be_hidden()


def test_a_found_folder_opens_to_all_that_is_in_it(visit):
    page = visit("Model")
    page.get_by_label("Search the tree").fill("feedforward")
    expect(row(page, FF)).to_have_attribute("aria-expanded", "false")
    row(page, FF).locator(".fold").click()
    expect(row(page, f"{FF}.layers")).to_be_visible()
    expect(row(page, f"{FF}.layers.2")).to_be_hidden()
    row(page, FF).locator(".fold").click()
    expect(row(page, f"{FF}.layers")).to_be_hidden()


def test_the_printed_model_is_the_notebooks(visit):
    page = visit("Model")
    page.get_by_text("What print(model) writes").click()
    expect(page.get_by_text("(0-11): 12 x TransformerBlock(").first).to_be_visible()
    expect(page.get_by_text("(lora): LoRALayer(rank=8, alpha=16)").first).to_be_visible()


def test_on_a_phone_only_cards_scroll_sideways(new_page, visit, width_of):
    phone = visit("Model", on=new_page(viewport={"width": 390, "height": 844}))
    expect(phone.locator("#model-stats")).to_contain_text("1,328,642")
    assert width_of(phone) == 0
    controls, card = phone.locator(".controls").first, phone.locator("#module")
    assert abs(controls.bounding_box()["width"] - card.bounding_box()["width"]) < 2
