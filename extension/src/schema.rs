//! Install order of `sql/`. Read the files in this order.

use pgrx::extension_sql_file;

extension_sql_file!("../../sql/10_schema.sql", bootstrap);
extension_sql_file!("../../sql/20_tables.sql", requires = ["10_schema"]);
extension_sql_file!("../../sql/25_event_types.sql", requires = ["20_tables"]);
extension_sql_file!("../../sql/28_seal.sql", requires = ["25_event_types"]);
extension_sql_file!("../../sql/30_webhooks.sql", requires = ["28_seal"]);
extension_sql_file!("../../sql/35_signatures.sql", requires = ["30_webhooks"]);
extension_sql_file!("../../sql/40_emit.sql", requires = ["35_signatures"]);
extension_sql_file!("../../sql/45_watch.sql", requires = ["40_emit"]);
extension_sql_file!("../../sql/46_watch_clock.sql", requires = ["45_watch"]);
extension_sql_file!("../../sql/47_watch_schema.sql", requires = ["46_watch_clock"]);
extension_sql_file!("../../sql/48_environment.sql", requires = ["47_watch_schema"]);
extension_sql_file!("../../sql/50_sidecars.sql", requires = ["48_environment"]);
extension_sql_file!("../../sql/55_finish.sql", requires = ["50_sidecars"]);
extension_sql_file!("../../sql/57_replay.sql", requires = ["55_finish"]);
extension_sql_file!("../../sql/60_claim.sql", requires = ["57_replay"]);
extension_sql_file!("../../sql/62_health.sql", requires = ["60_claim"]);
extension_sql_file!("../../sql/65_settle.sql", requires = ["62_health"]);
extension_sql_file!("../../sql/70_render.sql", requires = ["65_settle"]);
extension_sql_file!("../../sql/75_test_call.sql", requires = ["70_render"]);
extension_sql_file!("../../sql/77_weeks.sql", requires = ["75_test_call"]);
extension_sql_file!("../../sql/78_totals.sql", requires = ["77_weeks"]);
extension_sql_file!("../../sql/79_retain.sql", requires = ["78_totals"]);
extension_sql_file!("../../sql/80_views.sql", requires = ["79_retain"]);
extension_sql_file!("../../sql/81_trace.sql", requires = ["80_views"]);
extension_sql_file!("../../sql/82_audit.sql", requires = ["81_trace"]);
extension_sql_file!("../../sql/83_erase.sql", requires = ["82_audit"]);
extension_sql_file!("../../sql/84_explain.sql", requires = ["83_erase"]);
extension_sql_file!("../../sql/86_simulate.sql", requires = ["84_explain"]);
extension_sql_file!("../../sql/88_gauges.sql", requires = ["86_simulate"]);
extension_sql_file!("../../sql/90_privileges.sql", requires = ["88_gauges"]);
extension_sql_file!("../../sql/95_dump.sql", finalize);
