"""Write down what this machine is: metrics/machine.json."""

from lopside.cli import stage
from lopside.files import write_json
from lopside.machine import fingerprint
from lopside.params import Params


@stage
def main(params: Params) -> None:
    """Write this machine's fingerprint, so that no time of another machine is taken for one of this."""
    write_json("metrics/machine.json", fingerprint())


if __name__ == "__main__":
    main()
