-- One user's life, in the words of the application. Each statement is run by itself; each brings one event.

insert into app.users
values (63396, 'ada@example.com', 'ada', 'Ada', 'Lovelace', 'GB', '+442071234567');

insert into app.subscriptions (user_id, group_id, group_name, multi_login_count, expires_at)
values (63396, 3, '3 Month', 5, now() + interval '90 days');

insert into app.payments (user_id, amount, currency, method)
values (63396, 29.99, 'USD', 'card');

delete from app.users
where id = 63396;
