"""What trials, attacks and public reports broke, and the tests that show that each of it holds.

Each finding has its number in the list of the trials, a few words, and its tests. A finding in `OPEN` has no test yet.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).resolve().parents[1]

ACCEPTANCE_CALLBACKS: Final = "acceptance/test_callbacks.py"
CLI: Final = "acceptance/test_cli.py"
FIRST_RUN: Final = "acceptance/test_first_run.py"
MIGRATED: Final = "integration/test_migrated_schema.py"
JOURNAL: Final = "integration/test_journal.py"
POISON: Final = "integration/test_poison.py"
PROCESSOR: Final = "integration/test_processor.py"
PROCESSOR_FAULTS: Final = "integration/test_processor_faults.py"
TRANSFER: Final = "integration/test_export_import.py"
WEBHOOK: Final = "integration/test_webhook_sink.py"
EGRESS: Final = "integration/test_egress.py"
OVERLOAD: Final = "acceptance/test_overload.py"
QUERIES: Final = "integration/test_message_queries.py"
FIRST_VERSION: Final = "integration/test_first_version.py"
DOCS: Final = "contract/test_docs.py"
ALERTMANAGER: Final = "unit/test_alertmanager.py"
ALERT_LIFE: Final = "integration/test_alert_life.py"
NOTIFICATIONS: Final = "integration/test_notifications.py"
NOTIFICATION_API: Final = "integration/test_notification_api.py"
ALERT_FACTS: Final = "integration/test_alert_facts.py"
ALERT_RULES: Final = "unit/test_alert_rules.py"
RECONCILIATION: Final = "integration/test_reconciliation.py"

OPEN: Final = frozenset(
    {
        # There is no second version yet.
        "R31",
    }
)
"""Findings for which no test stands in the table yet."""

EDGES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    # reliability
    "F-1": (
        "troubles of the database answered 200 and filed as unreadable",
        (
            f"{JOURNAL}::test_fault_of_the_journal_file_is_unavailable_and_heals",
            f"{JOURNAL}::test_fault_of_the_postgresql_journal_is_unavailable_and_heals",
            f"{JOURNAL}::test_unexpected_error_of_a_callback_request_is_answered_503",
            f"{PROCESSOR_FAULTS}::test_fault_stops_the_processor_and_nothing_is_quarantined",
            f"{PROCESSOR_FAULTS}::test_error_that_says_nothing_of_the_callback_quarantines_nothing",
            f"{PROCESSOR_FAULTS}::test_data_error_quarantines_its_callback_alone",
            f"{PROCESSOR_FAULTS}::test_fault_of_the_database_is_no_data_error",
        ),
    ),
    "F-2": (
        "a log pipe that nobody reads stops the process",
        (
            "acceptance/test_log.py::test_log_pipe_that_nobody_reads_holds_neither_server_nor_worker",
            "unit/test_logs.py::test_pipe_that_nobody_reads_holds_nobody_up_and_dropped_lines_are_counted",
        ),
    ),
    "F-3": (
        "everybody waits for one large message or body",
        (
            f"{POISON}::test_poison_body_costs_bounded_time_and_so_does_what_follows",
            f"{POISON}::test_recipients_of_a_message_are_bounded_over_all_of_its_events",
            f"{POISON}::test_event_10001_of_a_message_is_too_large_and_repeats_are_still_recognised",
            f"{POISON}::test_batch_of_many_large_messages_reads_a_bounded_number_of_events",
            f"{POISON}::test_long_parsing_and_folding_let_others_have_their_turn",
            f"{POISON}::test_backlog_of_64_megabytes_is_processed_in_bounded_memory",
        ),
    ),
    "F-4": (
        "/readyz says ready while no callback can be committed, or not ready while callbacks can",
        (
            f"{ACCEPTANCE_CALLBACKS}::test_while_the_journal_cannot_commit_the_answer_is_503_and_not_ready",
            f"{ACCEPTANCE_CALLBACKS}::test_locked_status_table_delays_no_answer_and_readyz_stays_ready",
            f"{JOURNAL}::test_lock_of_the_event_log_does_not_hold_up_the_journal",
            f"{JOURNAL}::test_fault_of_the_main_file_does_not_hold_up_the_journal",
            "unit/test_journal_group.py::test_probe_takes_its_turn_between_two_commits",
        ),
    ),
    "F-5": (
        "an SQLite file removed, replaced or truncated under the server",
        (
            f"{JOURNAL}::test_file_removed_replaced_or_truncated_is_unavailable_until_restart",
            f"{ACCEPTANCE_CALLBACKS}::test_removed_journal_file_is_503_and_not_ready",
        ),
    ),
    "F-6": (
        "retries by the process's clock",
        (
            "integration/test_clock_steps.py::test_retry_comes_after_its_pause_when_the_clock_is_set",
            "acceptance/test_clock_steps.py::test_retry_is_neither_early_nor_an_hour_late",
        ),
    ),
    "F-7": (
        "PgBouncer in transaction mode",
        ("faults/test_pgbouncer.py::test_pgbouncer_changes_nothing_and_its_restart_loses_nothing",),
    ),
    "F-8": (
        "4,096 idle connections shut everybody out",
        (
            f"{ACCEPTANCE_CALLBACKS}::test_waiting_connections_shut_nobody_out",
            f"{ACCEPTANCE_CALLBACKS}::test_request_in_progress_outlives_idle_connections",
            "acceptance/test_http.py::test_probes_are_answered_while_every_connection_is_busy",
            "acceptance/test_http.py::test_more_busy_connections_than_spare_ones_are_closed_and_counted",
        ),
    ),
    "F-9": (
        "alarms that are promised and missing: write-ahead log, held event loop",
        (
            "integration/test_status.py::test_write_ahead_log_that_a_reader_keeps_is_logged_once_an_hour",
            "unit/test_monitoring.py::test_event_loop_that_is_held_up_is_measured_and_logged",
            "acceptance/test_metrics.py::test_sizes_of_database_and_disk_are_measured",
        ),
    ),
    "F-10": (
        "starts without standard error, on a full disk, without memory",
        (
            "acceptance/test_log.py::test_server_runs_with_closed_standard_streams_and_the_sink_stdout_keeps_its_events",
            "unit/test_logs.py::test_without_standard_error_nothing_fails",
        ),
    ),
    "F-11": (
        "imported old events behind young ones are not pruned",
        (
            "integration/test_retention.py::test_old_imported_events_behind_young_ones_are_pruned",
            "integration/test_retention.py::test_a_young_event_among_old_ones_does_not_hide_those_behind_it",
            "integration/test_retention.py::test_pruning_reads_young_blocks_of_the_log_once",
        ),
    ),
    "F-12": (
        "the queue of callbacks is bounded in number and not in time",
        (
            f"{OVERLOAD}::test_burst_of_a_thousand_connections_is_accepted_within_five_seconds",
            f"{OVERLOAD}::test_locked_journal_answers_a_burst_with_503_and_retry_after_within_five_seconds",
            "unit/test_journal_group.py::test_watchdog_answers_within_five_seconds",
            "unit/test_journal_group.py::test_journal_is_full_when_too_much_waits",
        ),
    ),
    # tests that were missing, by the number of the promise
    "R1": (
        "killed at any moment, with several sinks",
        ("faults/test_killed_servers.py::test_kill_9_at_any_moment_loses_nothing_and_repeats_nothing",),
    ),
    "R2": (
        "killed between commit and answer",
        ("faults/test_failpoints.py::test_web_process_killed_at_failpoint_gets_a_repeat_and_logs_it_once",),
    ),
    "R7": (
        "synced before the 200",
        (
            f"{JOURNAL}::test_fdatasync_of_the_journal_comes_before_every_200",
            f"{JOURNAL}::test_sqlite_writer_syncs_every_commit",
            f"{JOURNAL}::test_postgresql_writer_commits_synchronously_whatever_the_database_s_default",
        ),
    ),
    "R8": (
        "disk full",
        (
            f"{JOURNAL}::test_fault_of_the_journal_file_is_unavailable_and_heals",
            f"{JOURNAL}::test_fault_of_the_postgresql_journal_is_unavailable_and_heals",
        ),
    ),
    "R9": (
        "a write-ahead log that grows",
        ("integration/test_status.py::test_write_ahead_log_that_a_reader_keeps_is_logged_once_an_hour",),
    ),
    "R11": (
        "PostgreSQL restarted, then promoted",
        (
            "faults/test_failover.py::test_failover_to_the_second_host_of_the_url",
            "faults/test_failover.py::test_failover_of_an_address_that_moves_to_the_new_primary",
        ),
    ),
    "R12": (
        "connections of PostgreSQL exhausted",
        (f"{JOURNAL}::test_fault_of_the_postgresql_journal_is_unavailable_and_heals",),
    ),
    "R13": (
        "through PgBouncer",
        ("faults/test_pgbouncer.py::test_pgbouncer_changes_nothing_and_its_restart_loses_nothing",),
    ),
    "R26": (
        "a burst, and large bodies",
        (
            f"{OVERLOAD}::test_burst_of_a_thousand_connections_is_accepted_within_five_seconds",
            f"{POISON}::test_poison_body_costs_bounded_time_and_so_does_what_follows",
        ),
    ),
    "R29": (
        "steps of the clock",
        (
            "integration/test_clock_steps.py::test_clock_that_is_set_there_and_back_changes_nothing",
            "integration/test_clock_steps.py::test_clock_that_was_set_back_while_no_process_ran",
            "acceptance/test_clock_steps.py::test_retry_is_neither_early_nor_an_hour_late",
        ),
    ),
    "R31": ("two versions at once", ()),
    "R32": (
        "killed in the middle of a migration",
        (f"{FIRST_VERSION}::test_interrupted_migration_is_completed_by_the_next_one",),
    ),
    "R33": (
        "event loop held",
        (
            "unit/test_monitoring.py::test_event_loop_that_is_held_up_is_measured_and_logged",
            "acceptance/test_metrics.py::test_delay_of_both_event_loops_is_measured",
        ),
    ),
    "R39": (
        "hours of use",
        (
            "faults/test_soak.py::test_load_and_small_faults_leave_nothing_behind",
            "acceptance/test_reload.py::test_reloads_leave_no_memory_behind",
        ),
    ),
    "R46": (
        "standard error that nobody reads, or closed",
        (
            "acceptance/test_log.py::test_log_pipe_that_nobody_reads_holds_neither_server_nor_worker",
            "acceptance/test_log.py::test_server_runs_with_closed_standard_streams_and_the_sink_stdout_keeps_its_events",
        ),
    ),
    "damaged page": (
        "a damaged page under the server",
        (
            f"{PROCESSOR_FAULTS}::test_damaged_journal_stops_the_processor_and_skips_nothing",
            f"{PROCESSOR_FAULTS}::test_fault_stops_the_processor_and_nothing_is_quarantined",
        ),
    ),
    "intake lock": (
        "/readyz against a held lock",
        (f"{JOURNAL}::test_lock_of_the_event_log_does_not_hold_up_the_journal",),
    ),
    # security
    "H1": (
        "an inbound event rewrites an outbound message",
        (
            f"{PROCESSOR}::test_inbound_event_with_the_id_of_an_outbound_message_is_another_message",
            f"{PROCESSOR}::test_without_a_valid_tag_nothing_posted_changes_an_outbound_message",
            f"{QUERIES}::test_an_inbound_event_never_changes_an_outbound_message_nor_the_reverse",
            f"{FIRST_VERSION}::test_rebuild_splits_messages_that_mixed_inbound_and_outbound_and_changes_no_other",
        ),
    ),
    "H2": (
        "an endless header or trailer",
        (
            f"{ACCEPTANCE_CALLBACKS}::test_endless_headers_and_trailers_close_the_connection",
            "acceptance/test_http.py::test_endless_header_is_not_read",
            "acceptance/test_http.py::test_endless_trailer_closes_the_connection",
        ),
    ),
    "H3": (
        "pipelined requests fill the memory",
        (f"{ACCEPTANCE_CALLBACKS}::test_flood_of_pipelined_requests_closes_the_connection",),
    ),
    "M1": (
        "a bound tag is valid for an event about another number",
        (
            "unit/test_tag_checker.py::test_a_tag_bound_to_recipients_is_forged_for_another_number",
            "unit/test_tags.py::test_a_bound_tag_is_forged_for_a_neighbouring_set_of_recipients",
            f"{PROCESSOR}::test_without_a_valid_tag_nothing_posted_changes_an_outbound_message",
        ),
    ),
    "M2": (
        "idle connections up to the limit of descriptors",
        (
            f"{ACCEPTANCE_CALLBACKS}::test_waiting_connections_shut_nobody_out",
            "acceptance/test_http.py::test_client_with_very_many_connections_gives_up_its_own",
            "acceptance/test_http.py::test_trusted_proxy_may_have_very_many_connections",
        ),
    ),
    "M3": (
        "bodies of 1 MB that cost seconds",
        (
            f"{POISON}::test_poison_body_costs_bounded_time_and_so_does_what_follows",
            f"{POISON}::test_quarantine_of_half_a_million_elements_is_a_hundred_rows",
            f"{POISON}::test_hundred_thousand_recipients_are_too_large",
            f"{POISON}::test_batch_is_bounded_in_events",
        ),
    ),
    "M4": (
        "strangers fill the log",
        ("acceptance/test_log.py::test_strangers_who_send_garbage_get_one_line_and_are_counted",),
    ),
    "M5": (
        "floods without credentials, and bodies behind a refusal",
        (
            "acceptance/test_http.py::test_large_body_behind_a_refusal_is_not_parsed_and_the_answer_arrives",
            "acceptance/test_http.py::test_endless_body_behind_a_refusal_is_cut_off",
            "acceptance/test_http.py::test_small_body_behind_a_refusal_leaves_the_connection_in_use",
        ),
    ),
    "L1": (
        "a Content-Length of 5,000 digits",
        (
            f"{ACCEPTANCE_CALLBACKS}::test_huge_content_length_is_not_a_500",
            "acceptance/test_http.py::test_content_length_with_very_many_zeros_is_its_number",
        ),
    ),
    "L2": (
        "part of a password in an error line",
        (
            f"{CLI}::test_a_wrong_database_url_is_one_line_and_exit_code_2",
            "integration/test_database.py::test_unknown_parameter_of_a_url_is_refused_without_its_password",
        ),
    ),
    "L3": (
        "authentication switched off is not logged",
        (
            "acceptance/test_log.py::test_authentication_that_is_off_is_logged_at_every_start",
            "acceptance/test_log.py::test_worker_whose_metrics_need_no_token_logs_that",
        ),
    ),
    "L4": (
        "lines of an import: impossible times, known ids, long addresses",
        (
            f"{TRANSFER}::test_a_broken_line_says_what_is_wrong_and_nothing_of_what_is_in_it",
            f"{TRANSFER}::test_a_line_with_a_known_id_is_left_alone_entirely",
            f"{TRANSFER}::test_broken_lines_are_named_by_their_number_and_stop_no_other",
        ),
    ),
    "L5": (
        "files that others may write are used without a word",
        ("acceptance/test_first_run.py::test_files_open_to_all_users_are_closed_and_it_is_logged",),
    ),
    "L6": (
        "links that follow the caller's host, and break out of their brackets",
        (
            "acceptance/test_query_api_attacks.py::test_an_id_cannot_break_out_of_the_link",
            "acceptance/test_query_api_attacks.py::test_forged_host_header_cannot_break_out_of_the_link",
            "acceptance/test_query_api.py::test_links_begin_with_public_url",
        ),
    ),
    "L7": (
        "not written: sinks of one's own are trusted, how to publish the callbacks alone",
        (
            f"{DOCS}::test_the_proxy_that_publishes_callbacks_alone_publishes_all_of_them",
            f"{DOCS}::test_what_a_sink_of_ones_own_may_do_is_said",
        ),
    ),
    "L8": (
        "the first of several headers counts",
        (
            "acceptance/test_query_api_attacks.py::test_two_authorization_headers_are_401",
            f"{ACCEPTANCE_CALLBACKS}::test_compressed_body_is_415",
            "acceptance/test_http.py::test_two_authorization_headers_are_no_credentials",
        ),
    ),
    "S24": (
        "texts and numbers of a row that the database refuses, in a traceback of the log",
        (
            "acceptance/test_canaries.py::test_no_canary_gets_out",
            "unit/test_logs.py::test_traceback_has_the_first_lines_of_its_texts_alone",
        ),
    ),
    "S49": (
        "our password in the stored response of a webhook that repeats the request",
        (
            f"{WEBHOOK}::test_response_that_repeats_the_request_is_stored_without_what_authenticates_it",
            "acceptance/test_canaries.py::test_no_canary_gets_out",
        ),
    ),
    "L9": (
        "secrets in the repr of the settings",
        ("unit/test_settings.py::test_repr_of_settings_has_no_secrets",),
    ),
    "L10": (
        "weak secrets, and a misspelt role that makes an admin",
        (
            "unit/test_settings.py::test_short_secret_is_refused_on_a_public_address",
            "unit/test_settings.py::test_a_wrong_setting_is_named_in_one_line_without_its_value",
        ),
    ),
    "L11": (
        "a sandbox that others can reach",
        (
            "acceptance/test_sandbox_command.py::test_host_that_other_machines_reach_needs_remote_clients",
            "integration/test_sandbox_control.py::test_other_content_types_are_rejected_against_cross_origin_requests",
        ),
    ),
    "L12": (
        "/readyz says ready for a role that may not insert",
        (f"{JOURNAL}::test_role_without_insert_is_unavailable_and_heals",),
    ),
    "L13": (
        "a file of a sink that is a link, or that others may read",
        ("contract/test_sinks.py::test_jsonl_does_not_follow_a_symbolic_link",),
    ),
    # interoperability
    "I1": (
        "Kafka: structured records with a header of the binary form",
        ("integration/test_cloudevents_sdk.py::test_kafka",),
    ),
    "I2": (
        "RabbitMQ: the prefix of the headers",
        ("integration/test_cloudevents_sdk.py::test_rabbitmq",),
    ),
    "I3": (
        "NATS: two sinks of one stream remove each other's events as duplicates",
        ("integration/test_nats_sink.py::test_two_sinks_of_one_stream_store_an_event_each",),
    ),
    "I4": (
        "database URLs as hosts hand them out",
        (
            "integration/test_database.py::test_the_driver_is_ours_to_name",
            "integration/test_database.py::test_wrong_url_is_one_line_with_the_setting_and_without_the_password",
        ),
    ),
    "I5": (
        "mounted under a prefix, and no factory",
        (
            "acceptance/test_mounted.py::test_mounted_application_serves_callbacks_api_and_links_under_its_prefix",
            "acceptance/test_mounted.py::test_uvicorn_starts_the_application_as_a_factory",
        ),
    ),
    "I6": (
        "two receivers on one bus cannot be told apart",
        (
            "integration/test_sink_choices.py::test_source_setting_is_in_the_first_copy_in_a_retry_and_in_a_replay",
            "acceptance/test_query_api.py::test_events_have_the_source_of_the_settings",
        ),
    ),
    # seen while reading the code
    "reload": (
        "a reload that fails has changed half of the settings",
        (
            "acceptance/test_reload.py::test_sighup_keeps_old_settings_on_error",
            "acceptance/test_reload.py::test_sighup_with_wrong_settings_changes_neither_web_process_nor_worker",
            "integration/test_sinks_reloaded.py::test_reload_keeps_old_sinks_when_the_database_is_unavailable",
        ),
    ),
    "alert.fired": (
        "a filter for an event that nothing publishes",
        ("unit/test_sink_settings.py::test_a_mistake_is_one_line_that_names_sink_and_field",),
    ),
    "millions of dead letters": (
        "the dead letters of a sink blind the rules about all sinks, and each round begins one more read",
        (
            "integration/test_sink_storage.py::test_retries_and_dead_letters_are_counted_to_a_limit",
            f"{ALERT_FACTS}::test_sinks_that_cannot_be_read_in_time_are_a_failure_and_not_health",
        ),
    ),
    "clock set back": (
        "a clock is set back: notifications, look-ups and sign-ins wait for as long, a budget comes twice",
        (
            f"{NOTIFICATIONS}::test_notification_is_tried_again_after_its_pause_when_the_clock_is_set_back",
            f"{NOTIFICATIONS}::test_new_notification_is_sent_at_once_though_the_clock_was_set_back",
            f"{NOTIFICATIONS}::test_pause_of_another_process_ends_though_the_clock_was_set_back_by_hours",
            f"{RECONCILIATION}::test_api_is_queried_again_soon_after_the_clock_was_set_back_in_a_pause",
            f"{RECONCILIATION}::test_budget_is_not_given_again_when_the_clock_is_set_back_over_midnight",
            f"{ALERT_FACTS}::test_what_a_clock_that_was_ahead_has_stored_is_in_no_window",
            "unit/test_sessions.py::test_failed_sign_ins_are_throttled_for_their_address",
        ),
    ),
    "trouble that is over": (
        "an alert by code stays open as unknown once nothing fails",
        (
            f"{ALERT_RULES}::test_failure_rate_by_code_is_clear_once_nothing_fails",
            f"{ALERT_FACTS}::test_failures_that_are_over_are_known_to_be_in_the_same_hour",
        ),
    ),
    "unreadable round": (
        "one round in which nothing is known keeps an alert from firing",
        ("unit/test_alerts.py::test_rounds_in_which_nothing_is_known_do_not_keep_an_alert_from_firing",),
    ),
    "summer time": (
        "receipts count as stopped for an hour a day after a change of summer time",
        (
            f"{ALERT_RULES}::test_expected_receipts_after_a_change_of_summer_time",
            "unit/test_three_weeks.py::test_a_change_of_summer_time_brings_no_false_alarm",
        ),
    ),
    "carrier (others)": (
        "a carrier with the name of a group of ours fires and is resolved without end",
        (f"{ALERT_RULES}::test_a_carrier_with_the_name_of_a_group_of_ours_has_an_alert_of_its_own",),
    ),
    "alert named twice": (
        "a post of Alertmanager names an alert twice: 500, lost alerts, a resolved alert without its event",
        (
            f"{ALERTMANAGER}::test_alert_named_several_times_in_one_post_has_one_change",
            f"{ALERTMANAGER}::test_alert_that_fires_and_is_resolved_in_one_post_is_resolved",
            f"{NOTIFICATION_API}::test_alert_named_twice_in_one_post_fires_once_and_the_others_are_taken",
            f"{ALERT_LIFE}::test_several_changes_of_an_alert_at_once_are_refused",
        ),
    ),
    "sinks after a mute": (
        "an alert of another program goes to the wrong sinks when its mute ends",
        (f"{ALERT_LIFE}::test_muted_alert_of_another_program_goes_to_the_sinks_of_its_rule_when_the_mute_ends",),
    ),
    "mute of a namesake": (
        "a mute of an alert of another program mutes a rule with the same name",
        (f"{ALERT_LIFE}::test_mute_of_an_alert_of_another_program_mutes_no_rule_of_the_same_name",),
    ),
    "mute during a round": (
        "a mute that is set while an alert begins is lost, or a deadlock",
        (
            f"{ALERT_LIFE}::test_mute_during_a_round_holds_for_the_alert_that_begins_in_it",
            f"{ALERT_LIFE}::test_mute_during_a_post_holds_for_the_alert_that_it_brings",
            f"{ALERT_LIFE}::test_mute_during_the_write_of_other_alerts_waits_for_it_without_a_deadlock",
            f"{ALERT_LIFE}::test_alert_that_is_just_being_resolved_cannot_be_acknowledged",
        ),
    ),
    "halted notifier": (
        "a process that was halted opens an incident after it was resolved",
        (
            f"{NOTIFICATIONS}::test_process_that_was_halted_before_it_sends_leaves_the_attempt_to_the_next",
            f"{NOTIFICATIONS}::test_result_of_an_attempt_is_not_recorded_once_another_process_makes_the_next",
        ),
    ),
    "unknown target": (
        "a worker with older settings puts off or ends the notifications of a new target",
        (
            f"{NOTIFICATIONS}::test_notifications_of_a_target_are_left_to_the_process_that_knows_it",
            f"{NOTIFICATIONS}::test_notification_that_is_tried_again_is_not_given_up_by_a_process_that_does_not_know_its_target",
            f"{NOTIFICATIONS}::test_target_that_left_the_settings_fails_after_ten_minutes",
        ),
    ),
    "links of chats": (
        "Mattermost and Google Chat make links of texts of strangers",
        (
            f"{NOTIFICATIONS}::test_mattermost_hook_gets_no_markup_of_strangers",
            f"{NOTIFICATIONS}::test_google_chat_hook_gets_no_markup_of_strangers",
            "unit/test_alert_text.py::test_text_of_strangers_stays_on_one_line_and_calls_nobody",
        ),
    ),
    "constraints": (
        "constraints whose names are not those of the models",
        (
            "integration/test_migrated_schema.py::test_migrated_indexes_and_constraints_are_those_of_the_models_on_sqlite",
            "integration/test_migrated_schema.py::test_migrated_indexes_and_constraints_are_those_of_the_models_on_postgresql",
            "integration/test_migrated_schema.py::test_names_of_an_existing_sqlite_database_are_mended_without_losing_a_row",
        ),
    ),
    # new users
    "N1": (
        "a number as people write it finds nothing",
        (
            "unit/test_numbers.py::test_usual_spellings_of_a_number_have_the_same_key",
            "unit/test_numbers.py::test_what_is_no_number_is_refused",
            "acceptance/test_cli.py::test_empty_list_says_what_was_searched_for",
        ),
    ),
    "N2": (
        "what a published event looks like is written nowhere",
        (
            f"{DOCS}::test_every_field_of_an_event_is_documented",
            f"{DOCS}::test_every_event_type_is_documented",
            "unit/test_cloudevents.py::test_every_event_is_as_its_schema_says",
            "acceptance/test_query_api.py::test_schema_of_events_needs_no_token",
            f"{CLI}::test_sample_of_a_published_event_needs_no_database",
            "contract/test_readme.py::test_the_events_page_shows_the_event_of_the_readme",
            "integration/test_columns.py::test_every_field_is_in_the_cloud_event",
        ),
    ),
    "N3": (
        "the log is silent when callbacks are refused",
        ("acceptance/test_log.py::test_log_tells_of_wrong_credentials_wrong_paths_and_quarantine",),
    ),
    "N4": (
        "serve says that it listens where it does not",
        (
            "acceptance/test_first_run.py::test_every_address_of_the_banner_is_answered",
            "acceptance/test_first_run.py::test_banner_urls_begin_with_public_url",
        ),
    ),
    "N5": (
        "`messages show` is no answer to a support person",
        (
            "acceptance/test_messages_show.py::test_failed_message_begins_with_the_answer",
            "acceptance/test_messages_show.py::test_group_has_a_summary_and_a_line_for_each_recipient",
            "acceptance/test_messages_show.py::test_contradiction_is_explained",
            "acceptance/test_messages_show.py::test_every_sink_says_what_it_was_sent",
        ),
    ),
    "N6": (
        "a callback in quarantine cannot be found by the message it names",
        (
            f"{CLI}::test_callbacks_of_a_message_are_listed",
            "integration/test_callbacks.py::test_a_quarantined_element_is_found_by_the_message_it_names",
        ),
    ),
    "N7": (
        "an import stops at the same line for ever, and names the wrong one",
        (
            f"{TRANSFER}::test_callbacks_with_many_events_are_imported_and_processed",
            f"{TRANSFER}::test_batches_are_bounded_by_lines_and_by_bytes",
            f"{TRANSFER}::test_an_append_that_fails_is_tried_again",
            f"{TRANSFER}::test_an_import_stops_after_a_minute_and_names_the_first_line_that_is_missing",
        ),
    ),
    "N8": (
        "one README of 1,482 lines, and addresses that do not exist",
        (
            "contract/test_readme.py::test_readme_has_at_most_200_lines",
            "acceptance/test_help_command.py::test_help_prints_the_markdown_of_a_topic",
            "acceptance/test_docs_pages.py::test_every_link_leads_to_a_page_and_an_anchor_without_a_token",
            f"{FIRST_RUN}::test_every_address_of_the_banner_is_answered",
        ),
    ),
    "N9": (
        "`check` and `serve` call sinks fine that cannot work",
        (
            "acceptance/test_cli.py::test_check_warns_of_sinks_that_cannot_be_reached",
            "contract/test_hostile_probe.py::test_probe_returns_an_error_whatever_the_sink_does",
        ),
    ),
    "N10": (
        "the suite is too long for a contributor",
        ("contract/test_readme.py::test_the_two_commands_come_first_and_ci_runs_the_second",),
    ),
    "N11": (
        "install lines that fail on a fresh machine",
        (f"{DOCS}::test_every_install_line_names_this_folder_or_a_package_of_somebody_else",),
    ),
    "N12": (
        "where the module of a sink of one's own must lie",
        (
            "contract/test_docs_own_sink.py::test_it_is_found_by_module_and_class",
            "unit/test_sink_settings.py::test_a_mistake_is_one_line_that_names_sink_and_field",
        ),
    ),
    "N13": (
        "the first webhook of every developer is refused",
        (
            "contract/test_readme.py::test_the_first_callback_is_published_as_the_event_shown_to_the_program_shown",
            f"{EGRESS}::test_what_is_blocked_is_named_with_the_setting_that_would_allow_it",
        ),
    ),
    "N14": (
        "traps of the view for people who query it",
        (
            "integration/test_status_view.py::test_view_tells_what_is_final_delivered_and_awaited",
            "integration/test_status_view.py::test_day_of_the_view_is_read_by_the_index_of_messages",
            "acceptance/test_docs_examples.py::test_the_five_queries_are_answered_on_sqlite",
            "acceptance/test_docs_examples.py::test_the_five_queries_are_answered_on_postgresql",
            "acceptance/test_docs_examples.py::test_read_only_database_user_example",
        ),
    ),
    "N15": (
        "commands take seconds before they do anything",
        (
            "acceptance/test_command_start.py::test_messages_list_imports_no_server_and_no_other_driver",
            "acceptance/test_command_start.py::test_messages_list_takes_little_more_cpu_than_its_libraries",
            f"{CLI}::test_help_loads_nothing_heavy",
        ),
    ),
    "N16": (
        "advice that creates an empty database in the wrong folder",
        (f"{CLI}::test_no_reading_command_creates_a_database",),
    ),
    "N17": (
        "error lines without host, file or setting",
        (
            "integration/test_database.py::test_unreachable_server_is_named_with_host_and_port",
            "integration/test_database.py::test_missing_database_is_named_with_the_remedy",
            "acceptance/test_first_run.py::test_data_dir_that_cannot_be_created_is_one_line",
            "unit/test_settings.py::test_a_wrong_setting_is_named_in_one_line_without_its_value",
            "unit/test_settings.py::test_wrong_value_in_the_toml_file_names_the_file_unless_the_environment_has_it",
        ),
    ),
    "N18": (
        "a start that fails leaves things behind",
        (
            "acceptance/test_first_run.py::test_start_that_fails_creates_nothing",
            "unit/test_settings.py::test_all_wrong_settings_are_found_at_once",
        ),
    ),
    "N19": (
        "metrics that are wrong, and metrics that are missing",
        (
            "acceptance/test_metrics.py::test_series_are_there_with_zero_before_anything_happens",
            "acceptance/test_metrics.py::test_use_of_the_fallback_is_seen",
            "acceptance/test_metrics.py::test_failures_are_counted_by_listed_codes_alone",
            "acceptance/test_metrics.py::test_deliveries_are_counted_by_the_status_that_they_reach",
            "acceptance/test_metrics.py::test_batches_are_counted_as_batches",
            "acceptance/test_metrics.py::test_imported_callbacks_count_in_no_lag",
        ),
    ),
    "N20": (
        "files for deployment",
        (
            "contract/test_deploy.py::test_the_unit_does_not_restart_after_a_wrong_setting",
            "contract/test_deploy.py::test_unit_and_containers_read_their_settings_from_that_file",
            "contract/test_deploy.py::test_commands_run_with_user_settings_and_credentials_of_the_service",
            "contract/test_prometheus.py::test_every_alert_is_about_metrics_that_exist_and_says_what_is_wrong",
            "acceptance/test_nginx.py::test_nothing_but_callbacks_is_published",
            "acceptance/test_nginx.py::test_callbacks_come_through_with_the_address_of_their_sender",
        ),
    ),
    # smaller ones
    "21": (
        "colours in a file",
        ("unit/test_logs.py::test_console_form_has_no_colours_in_a_file",),
    ),
    "22": (
        "the message of a log line under `event`",
        ("unit/test_logs.py::test_json_line_begins_with_timestamp_level_and_message",),
    ),
    "23": (
        "credentials of the sandbox fixture are a tuple",
        ("contract/test_sandbox_fixture.py::test_receiver_sandbox_settings_can_be_overridden",),
    ),
    "24": (
        "where a setting comes from",
        ("acceptance/test_cli.py::test_settings_are_shown_with_their_source_and_without_secrets",),
    ),
    "25": (
        "relative times",
        (
            "unit/test_parameters.py::test_times_back_from_now_are_parsed",
            "unit/test_parameters.py::test_a_query_takes_times_back_from_now",
        ),
    ),
    "26": (
        "a part of a tag, in another case",
        ("integration/test_message_queries.py::test_a_filter_finds_what_it_says",),
    ),
    "27": (
        "an example that prints nothing",
        ("acceptance/test_sandbox_command.py::test_printed_examples_work",),
    ),
    "28": (
        "the summary of the demo is not final",
        ("acceptance/test_demo.py::test_summary_has_the_callbacks_that_come_two_minutes_late",),
    ),
    "29": ("a group message widens the table", (f"{CLI}::test_group_message_does_not_widen_the_list",)),
    "30": (
        "`GET /` is a 404 in JSON",
        (
            "acceptance/test_callbacks.py::test_root_has_links_in_one_line",
            "integration/test_sandbox_control.py::test_root_says_what_the_server_is",
        ),
    ),
    "seed-1": (
        "a POST to the address of a user",
        ("integration/test_sandbox_sending.py::test_v1_message_posted_to_the_user_is_created_with_a_hint",),
    ),
    "seed-2": (
        "a media file that is too large",
        ("integration/test_sandbox_sending.py::test_message_with_a_media_file_called_too_large_is_refused",),
    ),
    "seed-3": (
        "receipts and media in one v1 message",
        ("unit/test_sandbox_v1.py::test_errors_have_the_documented_format_and_wording",),
    ),
    "seed-4": (
        "settings of the fixture that the command lacks",
        (
            "acceptance/test_sandbox_command.py::test_every_setting_of_the_fixture_is_an_option_and_a_variable",
            "acceptance/test_sandbox_command.py::test_numbers_and_applications_are_refused_as_set_by_variables",
        ),
    ),
    "seed-5": (
        "properties of a send that no callback has",
        ("integration/test_registered_sends.py::test_catapult_api_shows_the_parameters_of_the_send",),
    ),
    "seed-6": (
        "a derived deliveryState shown as if it came",
        ("unit/test_delivery.py::test_v1_error_without_a_receipt_has_no_delivery_state",),
    ),
    "seed-7": (
        "the delivery code as a text",
        ("integration/test_sandbox_sending.py::test_v1_code_is_a_number_in_get_and_a_text_in_callbacks",),
    ),
    "seed-8": (
        "a description without a code",
        ("acceptance/test_query_api.py::test_catapult_message_has_a_description_only_with_a_code",),
    ),
    "seed-9": (
        "the first names of v1's codes",
        ("unit/test_bandwidth_codes.py::test_names_of_the_first_v1_documents_are_known",),
    ),
    "seed-10": (
        "links with a sort key",
        (
            "acceptance/test_query_api.py::test_catapult_link_with_a_sort_key_leads_to_older_messages",
            "unit/test_parameters.py::test_catapult_keys_are_nanoseconds",
        ),
    ),
    "seed-11": (
        "empty parameters, and the order in capitals",
        ("unit/test_parameters.py::test_catapult_parameters_are_read_as_that_api_reads_them",),
    ),
    "seed-12": (
        "the time of a v2 message has fractions, and more fields than the documents",
        ("unit/test_sandbox_v2.py::test_representation_has_the_documented_fields",),
    ),
    "seed-13": (
        "a v2 message with media and no text",
        ("unit/test_sandbox_v2.py::test_documented_values_are_accepted",),
    ),
    # small cases from public reports
    "Upgrade": (
        "a client that offers another protocol",
        (
            f"{ACCEPTANCE_CALLBACKS}::test_offered_upgrade_is_ignored_and_the_body_is_kept",
            f"{ACCEPTANCE_CALLBACKS}::test_offers_in_pipelined_requests_are_ignored",
            f"{ACCEPTANCE_CALLBACKS}::test_get_with_an_offer_leaves_the_connection_in_use",
        ),
    ),
    "keep-alive": (
        "idle connections closed sooner than by proxies, and at a stop",
        (
            f"{FIRST_RUN}::test_idle_connections_are_closed_after_keep_alive",
            f"{FIRST_RUN}::test_sigterm_with_idle_connections_and_a_half_sent_request_ends_in_time",
        ),
    ),
    "X-Forwarded-Proto": (
        "a chain of protocols",
        (f"{ACCEPTANCE_CALLBACKS}::test_links_begin_with_the_protocol_that_the_client_used",),
    ),
    "Content-Encoding": (
        "a charset as the encoding",
        (f"{ACCEPTANCE_CALLBACKS}::test_charset_as_content_encoding_is_no_compression",),
    ),
    "failover": (
        "connections to a server that became read-only",
        (
            "integration/test_database.py::test_connection_made_to_a_read_only_server_is_thrown_away",
            "faults/test_failover.py::test_failover_to_the_second_host_of_the_url",
        ),
    ),
    "Latin-1": (
        "a database that is not UTF-8",
        ("integration/test_database.py::test_database_that_is_not_utf_8_is_refused",),
    ),
    "rotation": (
        "a file that is rotated by copying and truncating",
        (
            "acceptance/test_reload.py::test_rotated_jsonl_file_is_released_with_and_without_sighup",
            "contract/test_sinks.py::test_jsonl_reopens_a_rotated_file",
        ),
    ),
    "HEAD": (
        "health checks by HEAD",
        (
            "unit/test_health.py::test_head_is_answered_as_get",
            f"{ACCEPTANCE_CALLBACKS}::test_other_method_is_405_with_allow",
        ),
    ),
    "Kubernetes": (
        "a Service called receiver in the same namespace",
        ("unit/test_settings.py::test_variables_of_a_kubernetes_service_called_receiver_are_no_settings",),
    ),
    "passwords": (
        "passwords with special characters in URLs",
        (
            f"{FIRST_RUN}::test_banner_on_a_terminal_has_secrets",
            "integration/test_sandbox_callbacks.py::test_v1_credentials_in_the_url_are_sent_and_not_shown",
            "integration/test_database.py::test_the_driver_is_ours_to_name",
        ),
    ),
    "pipes": (
        "commands in pipes and on poor terminals",
        (
            f"{CLI}::test_closed_pipe_ends_a_command_by_sigpipe",
            f"{CLI}::test_control_characters_of_callbacks_are_escaped_in_every_output",
            "acceptance/test_help_command.py::test_help_is_printed_where_the_encoding_lacks_characters",
        ),
    ),
    "virtual host": (
        "ways to write the default virtual host of RabbitMQ",
        ("integration/test_rabbitmq_sink.py::test_default_virtual_host_is_found_however_it_is_written",),
    ),
    "idle consumer": (
        "a webhook's consumer closes idle connections",
        (f"{WEBHOOK}::test_connection_that_the_consumer_has_closed_is_not_used",),
    ),
    "ce- headers": (
        "headers of a binary CloudEvent over HTTP",
        (f"{WEBHOOK}::test_in_binary_form_the_attributes_are_headers_that_nothing_can_break_out_of",),
    ),
    "callback bodies": (
        "commas in media URLs, plus and percent in a query, byte order marks, a group of 40",
        (
            "contract/test_callback_fixtures.py::test_a_callback_is_read_as_its_fixture_says",
            f"{ACCEPTANCE_CALLBACKS}::test_v1_callback_by_get_with_unescaped_plus",
            "unit/test_fields.py::test_media_come_as_a_list_as_files_or_between_brackets",
        ),
    ),
    "malformed header": (
        "a webhook's consumer answers 200 with a header line that is not well formed",
        (
            f"{WEBHOOK}::test_malformed_header_does_not_hide_the_status",
            "unit/test_response_head.py::test_h11_accepts_every_repaired_head",
        ),
    ),
    "data directory": (
        "a data directory with a question mark in its name",
        (f"{FIRST_RUN}::test_data_lies_in_the_data_directory_whatever_its_name",),
    ),
    "cursor and registrations": (
        "a cursor of pulled or streamed events stays before registered sends, which retention removes",
        (
            "integration/test_registered_sends.py::test_cursor_of_pulled_events_passes_registrations",
            "acceptance/test_event_stream.py::test_heartbeats_move_the_place_beyond_registrations",
        ),
    ),
    "token of a stream": (
        "a token is revoked while its stream is being opened",
        ("acceptance/test_event_stream.py::test_token_that_is_revoked_while_its_stream_is_opened_gets_no_stream",),
    ),
    "late pipelined request": (
        "the 408 or 400 to a pipelined request answers an earlier one",
        (
            "acceptance/test_http.py::test_refused_request_is_answered_after_the_earlier_ones",
            "acceptance/test_http.py::test_second_answer_never_follows_one_that_has_begun",
        ),
    ),
    "password in an error": (
        "part of a password with an unencoded ? or & stands in an error about the database's URL",
        ("unit/test_postgresql_url.py::test_no_error_about_a_url_contains_a_part_of_its_password",),
    ),
    "migration and report": (
        "a migration and a long report on PostgreSQL wait for each other",
        (
            f"{MIGRATED}::test_migration_waits_for_a_report_without_a_deadlock_and_holds_up_no_callback",
            f"{MIGRATED}::test_migration_gives_up_on_a_report_without_end_and_says_so",
        ),
    ),
    "deleted stream": (
        "the stream of an idle sink is deleted, and the sink is listed as working",
        ("integration/test_nats_sink.py::test_idle_sink_whose_stream_is_deleted_is_down_until_there_is_one",),
    ),
    "removed main file": (
        "the API reads from a removed file of SQLite until the restart",
        (
            "integration/test_database.py::test_reads_notice_that_a_file_is_not_the_one_they_have_open",
            "acceptance/test_callbacks.py::test_removed_status_file_is_503_for_the_api",
        ),
    ),
    "lost log lines": (
        "log lines of pruner and reconciliation, whose fields an enumeration names, are lost in JSON",
        (
            "unit/test_logs.py::test_fields_may_have_names_of_an_enumeration",
            "unit/test_logs.py::test_line_that_cannot_be_formatted_keeps_its_time_level_message_and_fields",
            "integration/test_retention.py::test_json_line_of_the_pruner_has_a_number_for_each_kind",
            "integration/test_reconciliation.py::test_json_line_of_reconciliation_has_a_number_for_each_answer",
        ),
    ),
    "rules that never fire": (
        "rules of alerts with values that nothing has, or fields without effect, are accepted",
        (
            "unit/test_alert_rules.py::test_a_wrong_rule_is_named_with_its_field",
            "unit/test_alert_rules.py::test_field_without_effect_is_refused",
            "unit/test_alert_rules.py::test_values_of_where_are_compared_as_events_have_them",
        ),
    ),
    "first fault only": (
        "check names the first wrong sink and the first wrong rule alone",
        (
            "acceptance/test_cli.py::test_check_names_every_wrong_sink_rule_and_target",
            "acceptance/test_cli.py::test_check_names_wrong_sinks_and_rules_beside_wrong_settings",
        ),
    ),
    "refused mail": (
        "a wrong password of a mail server is reported as no connection",
        ("integration/test_notifications.py::test_what_a_mail_server_refuses_is_the_reason",),
    ),
    "replay count": (
        "the dry run of a replay counts events that the sink's filter leaves out",
        ("acceptance/test_operating.py::test_replay_counts_what_the_filter_of_the_sink_accepts",),
    ),
    "range backwards": (
        "statistics and lists answer a range that ends before it begins with no rows",
        (
            "unit/test_parameters.py::test_range_that_ends_before_it_begins_is_refused",
            "acceptance/test_cli.py::test_range_that_ends_before_it_begins_is_a_wrong_option",
        ),
    ),
}


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of the test functions of a file, those of its classes too."""
    tree = ast.parse((TESTS / path).read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(function.name for function in functions if function.name.startswith("test_"))


def named() -> Iterator[str]:
    for _, tests in EDGES.values():
        yield from tests


@pytest.mark.parametrize("test", sorted(set(named())))
def test_every_named_test_exists(test: str) -> None:
    path, _, name = test.partition("::")
    assert name in names_in(path)


def test_every_finding_has_a_test_or_is_open() -> None:
    assert {number for number, (_, tests) in EDGES.items() if not tests} == OPEN


def test_every_finding_says_in_a_few_words_what_it_is() -> None:
    assert all(0 < len(words) <= 100 for words, _ in EDGES.values())


def test_every_number_of_the_trials_is_in_the_table() -> None:
    series = {"F-": 12, "H": 3, "M": 5, "L": 13, "I": 6, "N": 20, "seed-": 13}
    numbers = {f"{letter}{number}" for letter, last in series.items() for number in range(1, last + 1)}
    assert numbers | {str(number) for number in range(21, 31)} <= EDGES.keys()
