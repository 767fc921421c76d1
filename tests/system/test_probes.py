"""How outages and overlaps are computed from probes; pure, so the cases are exact."""
import pytest
from redoubt_lab import LabError
from redoubt_lab.probes import Answer, outage, overlap, parse


def good(start, node="node-a", epoch=1, kind="tls", took=0.002):
    return Answer(kind, start, start + took, node, epoch, "")


def steady(begin, end, **more):
    return [good(begin + i * 0.005, **more) for i in range(round((end - begin) / 0.005))]


def test_a_line_of_the_prober():
    answer = parse("tls 1000000 1500000 node-b 7")
    assert (answer.start, answer.end, answer.node, answer.epoch) == (1.0, 1.5, "node-b", 7)
    assert answer.good
    assert parse("http 1 2 - refused").reason == "refused"
    assert not parse("http 1 2 - refused").good


def test_outage_is_from_last_good_to_first_good():
    answers = steady(0, 1) + steady(2.5, 3, node="node-b", epoch=2)
    assert outage(answers, "tls", 0.9).seconds == pytest.approx(1.505)


def test_a_stutter_counts_until_it_is_over():
    answers = steady(0, 1) + steady(1.5, 1.6) + steady(2, 3, node="node-b", epoch=2)
    assert outage(answers, "tls", 0.9).seconds == pytest.approx(1.005)


def test_without_interruption_it_is_the_longest_pause():
    answers = steady(0, 1) + steady(1.05, 2, node="node-b", epoch=2)
    assert outage(answers, "tls", 0.9).seconds == pytest.approx(0.055)


def test_pauses_before_the_event_do_not_count():
    answers = steady(0, 1) + steady(1.5, 3)
    assert outage(answers, "tls", 2).seconds == pytest.approx(0.005)


def test_no_answers_after_it_is_an_error():
    with pytest.raises(LabError):
        outage(steady(0, 1), "tls", 2)


def test_no_overlap_in_a_clean_switch_and_back():
    answers = (steady(0, 1) + steady(1.001, 2, node="node-b", epoch=2)
               + steady(2.001, 3, node="node-a", epoch=3))
    assert overlap(answers) == 0


def test_the_old_node_answers_after_the_new_one():
    answers = steady(0, 1.2) + steady(1.1, 2, node="node-b", epoch=2)
    assert overlap(answers) == pytest.approx(1.195 - 1.102)


def test_an_answer_without_epoch_has_that_of_its_node():
    answers = (steady(0, 1) + steady(1, 1.2, kind="http", epoch=0)
               + steady(1.1, 2, node="node-b", epoch=2))
    assert overlap(answers) > 0.08


def test_the_web_server_after_a_switch_back_belongs_to_the_new_epoch():
    answers = (steady(0, 1) + steady(1.1, 5, node="node-b", epoch=2)
               + steady(5.01, 6, kind="http", epoch=0) + steady(5.03, 6, epoch=3))
    assert overlap(answers) == 0


def test_fast_turns_are_no_overlap():
    answers = (steady(0, 0.3) + steady(0, 0.31, kind="http", epoch=0)
               + steady(0.35, 0.6, node="node-b", epoch=2)
               + steady(0.65, 2, epoch=3) + steady(0.64, 2, kind="http", epoch=0))
    assert overlap(answers) == 0


def test_probes_that_only_overlap_in_flight_are_no_proof():
    answers = [good(0.0), good(1.0, took=0.5), good(1.1, node="node-b", epoch=2, took=0.1)]
    assert overlap(answers) == 0


def test_a_web_server_that_is_back_long_before_the_administration_server_is_no_proof():
    answers = (steady(0, 1) + steady(1.1, 5, node="node-b", epoch=2)
               + steady(5.01, 9, kind="http", epoch=0) + steady(7.5, 9, epoch=3))
    assert overlap(answers) == 0


def test_a_web_server_that_answered_within_the_epoch_of_the_other_is_proof():
    answers = (steady(0, 1) + steady(1.3, 1.4, kind="http", epoch=0)
               + steady(1.1, 1.6, node="node-b", epoch=2) + steady(1.7, 3, epoch=3))
    assert overlap(answers) > 0.25
