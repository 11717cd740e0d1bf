"""Numbers as people say them."""


def percent(share: float, digits: int = 1) -> str:
    """0.973 -> '97.3%'. A share that is not whole is never rounded to 0% or 100%."""
    said = f"{100 * share:.{digits}f}"
    least = 10.0**-digits
    if 0 < share < 1 and float(said) in (0.0, 100.0):
        return f"under {least:g}%" if share < 0.5 else f"over {100 - least:g}%"
    return f"{said}%"


def duration(seconds: float) -> str:
    """Seconds as '0.4 s', '41 s', '3 min 5 s' or '2 h 10 min'."""
    if seconds < 0.05:
        return "0 s"
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, rest = divmod(whole, 3600)
    minutes = rest // 60
    return f"{hours:,} h {minutes} min" if minutes and hours < 48 else f"{hours:,} h"


def about_duration(seconds: float) -> str:
    """An estimate, no finer than it can be: '40 s', '4 min', '2 h'."""
    if seconds < 60:
        return duration(float(f"{seconds:.2g}"))
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.2g} h" if seconds < 36000 else f"{seconds / 3600:,.0f} h"


def about_megabytes(megabytes: float) -> str:
    """Memory to two digits: '310 MB', '1.6 GB'."""
    if megabytes >= 1000:
        return f"{megabytes / 1024:.1f} GB"
    return f"{float(f'{megabytes:.2g}'):,.0f} MB"
