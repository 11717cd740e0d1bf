from lora_gpt.ui.chart import chart


def test_an_empty_chart_is_named_by_what_it_says():
    """The sentence inside a picture is not read out, so that it stands in the name as well."""
    made = chart("Loss over the steps", empty="The loss appears at the first step.").html_template
    assert 'aria-label="Loss over the steps. The loss appears at the first step."' in made
    assert 'data-label="Loss over the steps"' in made
    assert ">The loss appears at the first step.</p>" in made


def test_words_cannot_leave_their_attribute():
    made = chart('A "loss"', empty="Not <b>yet</b>.").html_template
    assert 'aria-label="A &quot;loss&quot;. Not &lt;b&gt;yet&lt;/b&gt;."' in made
