from benchmarks.results import file_name, others_note, save_result


def test_a_name_tells_the_run_and_holds_a_digest_of_its_settings():
    one, other = (file_name("clinc-fedbuff, eta 2-0", {"server_lr": rate}) for rate in (1.0, 2.0))
    assert one.startswith("clinc-fedbuff--eta-2-0-")
    assert one != other
    assert one == file_name("clinc-fedbuff, eta 2-0", {"server_lr": 1.0})


def test_results_of_other_settings_are_counted_and_other_runs_are_not(tmp_path):
    mine, older, strange = file_name("a-0", 1), file_name("a-0", 2), file_name("a-1", 1)
    for name in (mine, older, strange):
        save_result({}, tmp_path / name)
    assert (
        others_note(tmp_path, [mine]) == f"; 1 kept ones in {tmp_path} are of other settings or an older form"
    )
    assert others_note(tmp_path, [mine, older]) == ""
