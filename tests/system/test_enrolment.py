"""A device that nobody has prepared becomes a managed one, and stops being one, across switches."""
import json

from redoubt_lab import plan

LAB = {"devices": 1, "newcomer": True}
TRUTH = "select id::text, state from redoubt.device where name = %s"


def redoubt(scene, *words):
    done = scene.host(scene.lab.wait_ready(60)).run("redoubt", *words, "--json")
    return json.loads(done.stdout) if done.stdout.strip() else None


def enrol(scene, token, check=True):
    return scene.host(plan.NEWCOMER).run("redoubt-agent", "enrol", "--server", "redoubt", "--again",
                                         "--token", token, check=check)


def reports(scene):
    return scene.lab.sql("select count(*) from redoubt.report r join redoubt.device d "
                         "on d.id = r.device_id where d.name = %s and d.state = 'active'",
                         plan.NEWCOMER)[0][0]


def expect_more_reports(scene):
    before = reports(scene)
    scene.lab.wait_for(lambda: reports(scene) > before, 40, "the new device reports", 0.1,
                       lambda: scene.host(plan.NEWCOMER).log("agent")[-2000:])


def test_a_device_is_enrolled_works_across_a_switch_and_is_revoked(scene):
    newcomer = scene.host(plan.NEWCOMER)
    token = redoubt(scene, "token", "create", "one device")["token"]
    enrol(scene, token)
    newcomer.start("agent")
    scene.later(lambda: newcomer.stop("agent"))
    expect_more_reports(scene)
    ((device, state),) = scene.lab.sql(TRUTH, plan.NEWCOMER)
    assert state == "active" and device != plan.device_id(plan.NEWCOMER)
    refused = enrol(scene, token, check=False)
    assert refused.returncode == 1 and "used" in refused.stderr

    scene.host(scene.active).power_off()
    scene.expect_switch()
    expect_more_reports(scene)
    scene.host(scene.active).power_on()
    scene.expect_ready()

    redoubt(scene, "device", "revoke", device, "--yes")
    scene.lab.wait_for(lambda: "revoked" in newcomer.log("agent"), 30, "the device is told", 0.1,
                       lambda: newcomer.log("agent")[-2000:])
    ((_, state),) = scene.lab.sql(TRUTH, plan.NEWCOMER)
    assert state == "revoked"


def test_a_wrong_token_enrols_nobody(scene):
    token = redoubt(scene, "token", "create", "another")["token"]
    parts = token.split(".")
    parts[2] = ("A" if parts[2][0] != "A" else "B") + parts[2][1:]
    refused = enrol(scene, ".".join(parts), check=False)
    assert refused.returncode == 1 and refused.stderr
    parts = token.split(".")
    parts[3] = ("A" if parts[3][0] != "A" else "B") + parts[3][1:]
    refused = enrol(scene, ".".join(parts), check=False)      # another authority than the token's
    assert refused.returncode == 1 and refused.stderr
