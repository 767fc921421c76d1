/* The rules of the node machine: included by test_node.c, which explains the words. */
#define READY  "start auto:3000 ?ready "
#define ACTIVE "released start auto:3000 ?active why:promoted "
/* Passive, the holder's last change was seen just now, nothing is in flight. */
#define CHANGED READY "idle still seq:100 | +20 idle "

static const struct row rows[] = {
    /* ---- start ---- */
    { .name = "a start takes away what an earlier life left",
      .script = "start ?following why:start !revoke !down !standby !scan" },
    { .name = "with everything in standby the node is ready",
      .script = READY "why:prepared ob:0 holds:0" },
    { .name = "nothing happens before the start",
      .script = "| +1000 db:ok svc:standby ?stopped ~scan ~put" },
    { .name = "a second start says nothing", .script = READY "| start ?ready ~revoke" },
    { .name = "stopped before it started: it stays so",
      .script = "stop start ?stopped ~scan" },
    /* ---- obstacles ---- */
    { .name = "a service that is not in standby hinders",
      .script = READY "svc1:failed ?following why:unprepared ob:2" },
    { .name = "the DBMS out of reach hinders", .script = READY "db:io ?following ob:4" },
    { .name = "published files that are not here hinder, until they are",
      .script = READY "content:io ?following why:unprepared ob:800 auto:500 ob:800 "
                      "content:ok ?ready" },
    { .name = "before anybody has told it, the files are not here",
      .script = "start svc:standby db:ok addr:ok idle ob:a00 content:ok ob:200 "
                "content:io ob:a00" },
    { .name =
          "what was known of the files stays known while the DBMS and the share are away",
      .script = READY "idle db:io +1400 io +10 ob:5" },
    { .name = "maintenance hinders and is remembered",
      .script = READY "| op:on !answer=ok !remember ?following ob:8 op:off ?ready" },
    { .name = "maintenance outlives a restart",
      .script = "start auto:3000 ?following ob:8",
      .maintenance = true },
    { .name = "a share that was not read lately hinders",
      .script = READY "idle +1400 io ?ready +10 ?following ob:1" },
    { .name = "a lease record of another cluster hinders",
      .script = READY "lease:foreign auto:200 ?following ob:40" },
    { .name = "a lease record of a newer format hinders",
      .script = READY "lease:version auto:200 ?following ob:40" },
    { .name = "an address that cannot be removed hinders, and is tried again",
      .script = "start addr:io svc:standby db:ok auto:900 ?following ob:300 | auto:300 "
                "!down ?ready" },
    { .name = "another daemon of our name hinders until it is gone for 8 reads",
      .script = READY
      "twin:1 auto:250 ?following ob:20 twin:0 auto:500 ob:20 auto:700 ?ready" },
    /* ---- L1 ---- */
    { .name = "L1: the claim is for exactly one more than the highest",
      .script = READY "still auto:1300 !claim=6 ~claim=5 ~claim=7" },
    { .name = "L1: who loses the exclusive create holds nothing",
      .script = CHANGED
      "+1060 ok !claim=6 | exists ?following why:claim_lost holds:0 ~fence ~active" },
    { .name = "L1: an epoch known to be used is walked over",
      .script = "still start auto:4000 ?active !claim=6 !release=node-a !claim=7 "
                "~fence=6 !fence=7",
      .known_epoch = 6 },
    { .name = "L1: the share lost eight epochs: they are walked over",
      .script = "still start auto:9000 ?active !fence=14",
      .known_epoch = 13 },
    { .name = "L1: the share lost nine: that is a restored copy, an operator decides",
      .script = "still start auto:9000 ?following ob:10 ~claim | op:adopt !answer=ok "
                "auto:9000 ?active !fence=15",
      .known_epoch = 14 },
    { .name = "L1: there is nothing to adopt on a good share",
      .script = READY "| op:adopt !answer=state" },
    { .name = "L1: the DBMS knows a higher epoch: history is not believed at once",
      .script = READY "db=6 top:5 released | auto:900 ~claim auto:400 !claim=6" },
    { .name = "L1: just connected, the word released is not believed at once",
      .script = "released start svc:standby db:ok auto:800 ~claim auto:400 !claim=6" },
    { .name = "L1: connected anew, it is not believed at once either",
      .script = READY "session:2 released | auto:900 ~claim auto:300 !claim=6" },
    { .name = "L1: what was walked over long ago is no evidence after a crash",
      .script = "still start auto:4000 ?active !claim=7 op:switchover auto:200 ?ready "
                "top:8 held by:node-b moving auto:3000 ?ready | session:2 top:6 "
                "by:node-a released "
                "to:node-a auto:900 ~claim auto:400 !claim=7",
      .known_epoch = 6 },
    { .name = "L1: nor is it when the epochs above it have vanished without a crash",
      .script = "still start auto:4000 ?active !claim=7 op:switchover auto:200 ?ready "
                "top:8 held by:node-b moving auto:3000 ?ready | top:6 by:node-a released "
                "to:node-a auto:900 ~claim auto:400 !claim=7",
      .known_epoch = 6 },
    { .name = "L1: a record that has vanished makes the wait begin anew",
      .script = CHANGED "+1050 not_found ~claim | +1 ok | +1000 ok ~claim" },
    /* ---- L2 ---- */
    { .name = "L2: a renewal extends from the moment before it was sent",
      .script = ACTIVE "idle | +100 !renew +30 ok !extend left:970" },
    { .name = "L2: the answer 1 ms before the deadline counts",
      .script = ACTIVE "idle +100 | +499 ~extend ok !extend left:501" },
    { .name = "L2: it steps down demote_before ahead of the deadline, not 1 ms earlier",
      .script = ACTIVE "idle +100 +20 ok idle +100 +679 ?active | +2 ?demoting "
                       "why:share_lost !standby !down" },
    { .name = "L2: after a failed renewal the next is soon",
      .script = ACTIVE "idle +100 | io idle +19 ~renew +1 !renew" },
    { .name = "L2: a record that is another's ends everything at once",
      .script = ACTIVE "idle +100 | stale ?fenced why:superseded !revoke !kill holds:0" },
    { .name = "L2: a record that has vanished ends everything at once",
      .script = ACTIVE "idle +100 | not_found ?fenced why:vanished !revoke !kill" },
    { .name = "L2: a higher epoch in a scan ends everything at once",
      .script = ACTIVE "top:7 by:node-b | auto:150 !kill !revoke" },
    /* ---- L3 ---- */
    { .name = "L3: a read sent 1 ms before the wait is over is no evidence",
      .script = CHANGED "+1059 ok ~claim ?ready" },
    { .name = "L3: a read sent when the wait is over is",
      .script = CHANGED "+1060 ok !claim=6 ?claiming why:lease_expired" },
    { .name = "L3: and so is one sent 1 ms later",
      .script = CHANGED "+1061 ok !claim=6" },
    { .name = "L3: a read sent early that is answered late is none",
      .script = CHANGED "+1059 +50 ok ~claim" },
    { .name = "L3: a change starts the wait anew",
      .script = CHANGED "+1050 seq:101 ok idle | +1050 ok ~claim" },
    { .name = "L3: a new epoch starts the wait anew",
      .script = CHANGED "+1060 top:6 ok ~claim !scan idle ?ready | +1050 ok ~claim" },
    { .name = "L3: a read that failed is no evidence",
      .script = CHANGED "+1060 io ~claim ?ready" },
    { .name = "L3: a released lease is claimed at once",
      .script = READY "idle released | +100 ok !claim=6 why:lease_released" },
    { .name = "L3: an unreadable record never counts as released",
      .script = READY "released lease:corrupt still | auto:900 ~claim" },
    { .name = "L3: an unreadable record is waited out by the word of the node record",
      .script = READY "lease:corrupt still | auto:1300 !claim=6" },
    /* ---- L4 ---- */
    { .name = "L4: the wait comes from the holder's hold, not ours",
      .script =
          READY "idle still hold:2000 +20 idle | +2069 idle ~claim +1 idle !claim" },
    { .name = "L4: nor from ours if the holder's is shorter",
      .script = READY "idle still hold:500 +20 idle | +554 idle ~claim +1 idle !claim" },
    /* ---- L5 ---- */
    { .name = "L5: the first deadline counts from before the create was sent",
      .script = CHANGED "+1060 ok | +300 ok ?promoting left:700 !extend=6" },
    { .name = "L5: an answer that leaves no time to serve does not count",
      .script = CHANGED "+1060 ok | +800 ok ?following why:claim_unknown ~extend" },
    { .name = "L5: one 1 ms earlier does",
      .script = CHANGED "+1060 ok | +799 ok ?promoting left:201" },
    /* ---- L6 ---- */
    { .name = "L6: past the deadline everything ends, whatever is answered then",
      .script = ACTIVE "idle +100 | +1000 ?fenced why:lease_lost !kill !revoke !down | "
                       "ok ~extend holds:0" },
    { .name = "L6: what was killed is followed by a clean passive life",
      .script = ACTIVE "top:7 by:node-b auto:2500 ?ready" },
    { .name = "L6: it stays fenced until every service is gone",
      .script = ACTIVE
      "idle +3000 svc0:stopped addr:ok ?fenced svc1:stopped ?following why:cleaned" },
    { .name = "L6: and until the address is",
      .script = ACTIVE "idle +3000 svc:stopped ?fenced addr:io ?following" },
    /* ---- L7 ---- */
    { .name = "L7: released only when the services are down and the address is gone",
      .script = ACTIVE "idle | op:switchover ?demoting why:operator idle ~release "
                       "svc:standby idle ~release ~revoke addr:ok !revoke !release" },
    { .name = "L7: the release names the peer that shall take it",
      .script = ACTIVE "| op:switchover auto:20 !release=node-b ?ready" },
    { .name = "L7: while it stands down it renews",
      .script = ACTIVE "idle | op:switchover idle +100 !renew ok !extend" },
    { .name = "L7: what was revoked is not extended by a late answer",
      .script =
          ACTIVE "idle +100 op:switchover svc:standby | addr:ok !revoke ok ~extend" },
    { .name = "L7: a release that was refused is tried again, but not at once",
      .script = ACTIVE "idle op:switchover idle svc:standby addr:ok !release | denied "
                       "~release ?demoting idle +19 idle ~release +1 idle !release" },
    { .name = "L7: a release that failed until the deadline: the peer waits it out",
      .script = ACTIVE
      "idle op:switchover idle svc:standby addr:ok io +1000 ?following why:stood_down" },
    { .name = "L7: services that do not stand down in time are killed",
      .script = ACTIVE
      "idle op:switchover addr:ok +100 ok +399 ?demoting | +1 ?fenced why:stuck !kill" },
    { .name = "L7: a vanished record ends a demotion",
      .script = ACTIVE "idle op:switchover idle +100 not_found ?fenced why:vanished" },
    /* ---- L8 ---- */
    { .name = "L8: a claim without an answer leaves the epoch unknown",
      .script = CHANGED
      "+1060 ok | timeout ?following why:claim_unknown ~active holds:0 !scan" },
    { .name = "L8: a claim that was refused is not repeated at once",
      .script =
          CHANGED "+1060 ok !claim | denied idle ~claim +19 idle ~claim +1 idle !claim" },
    { .name = "L8: and each next one later, up to hold",
      .script = CHANGED "+1060 ok denied idle | +20 ok !claim denied idle | +39 idle "
                        "~claim +1 idle !claim" },
    { .name = "L8: a renewal without an answer is neither success nor failure",
      .script = ACTIVE "idle +100 | timeout ?active ~extend holds:1" },
    { .name = "an answer that was not asked for is dropped",
      .script = CHANGED "+1060 | late:ok ~claim ?ready" },
    { .name = "and so is one to a claim",
      .script = CHANGED "+1060 ok | late:ok ?claiming" },
    { .name = "one share request is in flight at a time",
      .script = READY "idle +100 | +100 +100 ~scan ~poll ~put" },
    /* ---- promotion ---- */
    { .name = "promotion: the fence first, then services, then the address",
      .script = CHANGED
      "+1060 ok | ok !fence=6 !remember=6 ~active | fence:ok !active=6 ~up | svc0:active "
      "~up | svc1:active !up ?promoting | addr:ok ?active why:promoted" },
    { .name = "promotion waits fence_wait for the DBMS, and no longer",
      .script = CHANGED "+1060 ok ok | +299 ~active | +1 !active=6" },
    { .name = "a fence out of reach does not stop a promotion, and is raised later",
      .script = CHANGED
      "+1060 ok ok fence:io svc:active addr:ok ?active degraded:1 | idle +100 ok idle "
      "+300 ok idle +300 ok idle +250 ok idle +100 !fence=6 fence:ok degraded:0" },
    { .name = "the state of a service before it was told its role does not count",
      .script = CHANGED "svc:active +1060 ok ok | fence:ok ~up svc0:active ~up" },
    { .name = "a service that fails in a promotion: back to the peer",
      .script = CHANGED
      "+1060 ok ok fence:ok | svc0:failed ?demoting why:promotion_failed moves:1" },
    { .name = "one that does not get active in time counts as failed",
      .script = CHANGED "+1060 ok ok fence:ok +100 ok idle +300 ok idle +299 ok idle "
                        "?promoting | +1 ?demoting why:promotion_failed" },
    { .name = "without a peer the promotion goes on with what works",
      .script = READY
      "peer:gone auto:3000 idle still seq:100 +20 idle +1060 ok ok fence:ok svc0:active "
      "+100 ok idle +300 ok idle +300 ok idle !up addr:ok ?active degraded:1" },
    { .name = "an address that would not come is tried again while active",
      .script = CHANGED "+1060 ok ok fence:ok svc:active addr:io ?active degraded:1 | "
                        "auto:1100 !up degraded:0" },
    { .name = "the DBMS says that the epoch is used: walk on",
      .script = CHANGED "+1060 ok ok | fence=9 ?demoting why:fence_stale !remember=9 "
                        "auto:2500 ?active !claim=10 !fence=10" },
    { .name = "the DBMS shows a higher epoch while active: walk on",
      .script = ACTIVE "| db=9 ?demoting why:fence_stale" },
    /* ---- failed services ---- */
    { .name = "a failed service: hand over to a prepared peer",
      .script = ACTIVE
      "| svc1:failed ?demoting why:service_failed moves:1 auto:20 !release=node-b" },
    { .name = "no prepared peer: stay, the service restarts here",
      .script =
          ACTIVE "peer:following auto:200 svc1:failed ?active degraded:1 ~release" },
    { .name = "a peer in maintenance is not prepared",
      .script = ACTIVE "peer:maintenance auto:200 svc1:failed ?active" },
    { .name = "a peer whose record is old is not prepared",
      .script = ACTIVE "peer:gone auto:2100 svc1:failed ?active" },
    { .name = "one whose record is not quite so old is",
      .script = ACTIVE "peer:gone auto:1800 svc1:failed ?demoting" },
    { .name = "paused: the cluster does not switch by itself",
      .script = ACTIVE "paused:1 auto:200 svc1:failed ?active" },
    { .name = "a service that restarts is given its time",
      .script = ACTIVE "svc1:starting ?active svc1:changing ?active degraded:1" },
    { .name = "ping-pong: after switch_max moves it stays and restarts in place",
      .script = "count:2 released start auto:3000 ?active moves:2 svc1:failed ?active "
                "degraded:1" },
    { .name = "ping-pong: one move less, and it still hands over",
      .script =
          "count:1 released start auto:3000 ?active svc1:failed ?demoting moves:2" },
    { .name = "moves are forgotten when nothing failed for the window",
      .script = ACTIVE "peer:following auto:200 svc1:failed auto:9000 ?active peer:ready "
                       "auto:2000 svc1:failed ?demoting moves:1" },
    /* ---- operator, stop, guard ---- */
    { .name = "switchover is refused on a passive node",
      .script = READY "| op:switchover !answer=state ?ready" },
    { .name = "switchover is refused without a prepared peer",
      .script = ACTIVE "peer:following auto:200 | op:switchover !answer=denied ?active" },
    { .name = "maintenance on the active node hands over",
      .script = ACTIVE "| op:on !answer=ok !remember ?demoting why:maintenance auto:20 "
                       "!release=node-b ?following ob:8" },
    { .name =
          "a lease given away for maintenance comes back if the peer does not take it",
      .script = ACTIVE "op:on auto:20 ?following | peer:gone auto:1500 ~claim auto:2000 "
                       "!claim !remember ?active" },
    { .name = "the peer takes a lease given away for maintenance at the last moment: the "
              "maintenance goes on",
      .script =
          ACTIVE "op:on auto:20 ?following | peer:gone auto:1960 ~claim idle +60 ok "
                 "?claiming exists ?following why:claim_lost ob:8" },
    { .name = "maintenance is refused where nobody could take over",
      .script = ACTIVE "peer:following auto:200 | op:on !answer=denied ~remember" },
    { .name = "SIGTERM: stand down, release to the peer, end",
      .script = ACTIVE "| stop ?demoting why:stop ~stopped auto:20 ?stopped "
                       "!release=node-b !stopped !exit" },
    { .name = "SIGTERM: services that do not stop are killed in the end",
      .script = ACTIVE "idle stop idle svc:standby addr:ok ok !release !stopped | +499 "
                       "?demoting ~kill +1 ?fenced why:stuck !kill svc:stopped addr:ok "
                       "?stopped !exit" },
    { .name = "SIGTERM on the passive node: stop the services, end",
      .script = READY "| stop ?demoting !stopped ~release auto:10 ?stopped !exit" },
    { .name = "SIGTERM while it stands down: the services stop, too",
      .script =
          ACTIVE "idle op:switchover | stop ?demoting auto:20 ?stopped !stopped !exit" },
    { .name = "SIGTERM while fenced: end when all is gone",
      .script = ACTIVE "idle +3000 ?fenced stop | svc:stopped addr:ok ?stopped !exit" },
    { .name = "SIGTERM in a claim: stand down when it is answered",
      .script = CHANGED "+1060 ok stop ?claiming ok ?promoting +1 ?demoting" },
    { .name = "paused: SIGTERM releases to nobody in particular",
      .script =
          ACTIVE "paused:1 auto:200 | stop auto:20 !release ~release=node-b ?stopped" },
    { .name = "the guard is gone: step down and end",
      .script = ACTIVE "| guard ?demoting why:guard_lost auto:20 ?stopped !exit" },
    { .name = "a second signal changes nothing",
      .script = ACTIVE "stop guard ?demoting why:stop" },
    /* ---- who may take what ---- */
    { .name = "a lease released to the peer is left to it for yield",
      .script =
          READY "released to:node-b | +0 ok idle auto:1950 ~claim auto:120 !claim" },
    { .name = "a lease released to us is taken though a service is not in standby",
      .script = READY "svc1:failed released to:node-a | +100 ok idle !claim" },
    { .name = "an unprepared node leaves a released lease for unready_ms",
      .script = READY "svc1:failed still released seq:9 +100 ok idle | +400 ok idle +400 "
                      "ok idle +199 ok idle ~claim +1 idle !claim" },
    { .name = "an unprepared node leaves an expired lease for unready_ms more",
      .script =
          CHANGED "svc1:failed +1000 idle +1000 idle +59 idle ~claim +1 idle !claim" },
    { .name = "without the published files an expired lease of the peer is taken in time",
      .script = CHANGED "content:io +1000 idle +59 idle ~claim +1 idle !claim" },
    { .name = "without them one that we let expire is left for unready_ms, no longer",
      .script = READY "content:io by:node-a seq:9 +100 ok idle | +1000 idle +1000 idle "
                      "+59 idle ~claim +1 idle !claim" },
    { .name = "without them a node that nobody relieves serves what it has",
      .script = "content:io still start auto:4500 ?active degraded:0" },
    { .name = "a lease released to us is taken although published files are not here",
      .script = READY "content:io released to:node-a | +100 ok idle !claim" },
    { .name = "a failed service moves to a peer that lacks nothing but published files",
      .script = ACTIVE "peer:fit auto:200 svc1:failed ?demoting why:service_failed "
                       "auto:20 !release=node-b" },
    { .name = "a stop gives the lease to a peer that lacks nothing but published files",
      .script = ACTIVE "peer:fit auto:200 | stop auto:20 !release=node-b ?stopped" },
    { .name = "an operator does not switch to a peer without the published files",
      .script = ACTIVE "peer:fit auto:200 | op:switchover !answer=denied ?active" },
    { .name = "nor by maintenance",
      .script = ACTIVE "peer:fit auto:200 | op:on !answer=denied ?active" },
    { .name = "paused: a lease that expired is not taken from the peer",
      .script = READY "paused:1 still auto:5000 ~claim" },
    { .name = "paused: the last holder may come back",
      .script = READY "paused:1 by:node-a still auto:2500 !claim" },
    { .name = "paused: a lease released to us is taken",
      .script = READY "paused:1 released to:node-a | auto:250 !claim" },
    { .name = "in maintenance nothing is taken",
      .script = READY "op:on released auto:5000 ~claim" },
    /* ---- the rest ---- */
    { .name = "somebody else's use of the share gets its turn",
      .script = READY "idle | aux idle !aux ok ?ready" },
    { .name = "old epochs are removed now and then",
      .script = "top:40 released start auto:3000 ?active | auto:61000 !prune=25" },
    { .name = "no epoch is removed while there are few",
      .script = ACTIVE "| auto:61000 ~prune" },
};
