"""One kinship node as a program: `python kinship_node.py PRESET NAME BIND SEED,SEED...` prints what it believes.

Run by the Python that kinship is installed in, which is not that of ZephyrCache; so it imports nothing of ours.
Each line is a state and a member's name.
"""

import sys

import kinship
import kinship.blocking

STATES = {
    kinship.MemberJoined: "alive",
    kinship.MemberRecovered: "alive",
    kinship.MemberSuspect: "suspect",
    kinship.MemberDead: "dead",
    kinship.MemberLeft: "left",
}


def main() -> None:
    """Join and tell, until killed."""
    preset, name, bind, seeds = sys.argv[1:]
    make = {"lan": kinship.Config.lan, "local": kinship.Config.local}[preset]
    # Encryption costs microseconds and is left out; every other setting is the preset's own.
    config = make(name=name, bind=bind, seeds=seeds.split(","), insecure_plaintext=True)
    cluster = kinship.blocking.Cluster(config).start()
    events = cluster.events()
    for member in cluster.members():
        print(member.state.name.lower(), member.name, flush=True)
    for event in events:
        state = STATES.get(type(event))
        if state is not None:
            print(state, event.member.name, flush=True)


if __name__ == "__main__":
    main()
