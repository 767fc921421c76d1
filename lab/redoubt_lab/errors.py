"""The one error of the lab: a text for people, and what to do about it."""


class LabError(Exception):
    """Something the user can act on; `hint` says how."""

    def __init__(self, text, hint=""):
        super().__init__(text)
        self.hint = hint

    def __str__(self):
        text = super().__str__()
        return f"{text}\n  {self.hint}" if self.hint else text
