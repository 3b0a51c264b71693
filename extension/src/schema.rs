//! Install order of `sql/`. Read the files in this order.

use pgrx::extension_sql_file;

extension_sql_file!("../../sql/10_schema.sql", bootstrap);
extension_sql_file!("../../sql/20_tables.sql", requires = ["10_schema"]);
extension_sql_file!("../../sql/25_event_types.sql", requires = ["20_tables"]);
extension_sql_file!("../../sql/30_webhooks.sql", requires = ["25_event_types"]);
extension_sql_file!("../../sql/35_signatures.sql", requires = ["30_webhooks"]);
extension_sql_file!("../../sql/40_emit.sql", requires = ["35_signatures"]);
extension_sql_file!("../../sql/50_sidecars.sql", requires = ["40_emit"]);
extension_sql_file!("../../sql/55_finish.sql", requires = ["50_sidecars"]);
extension_sql_file!("../../sql/57_replay.sql", requires = ["55_finish"]);
extension_sql_file!("../../sql/60_claim.sql", requires = ["57_replay"]);
extension_sql_file!("../../sql/62_health.sql", requires = ["60_claim"]);
extension_sql_file!("../../sql/65_settle.sql", requires = ["62_health"]);
extension_sql_file!("../../sql/70_render.sql", requires = ["65_settle"]);
extension_sql_file!("../../sql/75_test_call.sql", requires = ["70_render"]);
extension_sql_file!("../../sql/90_privileges.sql", requires = ["75_test_call"]);
extension_sql_file!("../../sql/95_dump.sql", finalize);
