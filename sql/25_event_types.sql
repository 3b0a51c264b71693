-- The event catalogue: the product document's 43 types in 8 families, and two of orbhook's own about webhooks in trouble.
--
-- Applications add their own rows. The built-in ones cannot be changed, because a dump leaves them out: the next
-- CREATE EXTENSION brings them, and a change would be lost without a word.

insert into orbhook.event_types (name, category, description, built_in) values
    ('USER_CREATED', 'User', 'When a new user is registered', true),
    ('USER_DELETED', 'User', 'When a user account is deleted', true),
    ('USER_ACTION', 'User', 'Generic user activities', true),
    ('USER_LOGIN', 'User', 'When a user logs in', true),
    ('USER_LOGOUT', 'User', 'When a user logs out', true),
    ('USER_PASSWORD_CHANGED', 'User', 'When a user changes their password', true),
    ('USER_EMAIL_VERIFIED', 'User', 'When a user verifies their email', true),
    ('USER_PROFILE_UPDATED', 'User', 'When user profile information is updated', true),
    ('SUBSCRIPTION_CREATED', 'Subscription', 'When a new subscription is created', true),
    ('SUBSCRIPTION_RENEWED', 'Subscription', 'When a subscription is renewed', true),
    ('SUBSCRIPTION_CANCELLED', 'Subscription', 'When a subscription is cancelled', true),
    ('SUBSCRIPTION_EXPIRED', 'Subscription', 'When a subscription expires', true),
    ('SUBSCRIPTION_TRIAL_STARTED', 'Subscription', 'When a trial period begins', true),
    ('SUBSCRIPTION_TRIAL_ENDED', 'Subscription', 'When a trial period ends', true),
    ('SUBSCRIPTION_UPGRADED', 'Subscription', 'When a subscription is upgraded', true),
    ('SUBSCRIPTION_DOWNGRADED', 'Subscription', 'When a subscription is downgraded', true),
    ('PAYMENT_RECEIVED', 'Payment', 'When a payment is successfully processed', true),
    ('PAYMENT_FAILED', 'Payment', 'When a payment attempt fails', true),
    ('PAYMENT_REFUNDED', 'Payment', 'When a payment is refunded', true),
    ('PAYMENT_PENDING', 'Payment', 'When a payment is awaiting processing', true),
    ('DEVICE_CONNECTED', 'Device', 'When a device connects to VPN', true),
    ('DEVICE_DISCONNECTED', 'Device', 'When a device disconnects from VPN', true),
    ('DEVICE_ADDED', 'Device', 'When a new device is registered', true),
    ('DEVICE_REMOVED', 'Device', 'When a device is removed', true),
    ('DEVICE_LIMIT_REACHED', 'Device', 'When user reaches their device limit', true),
    ('SECURITY_LOGIN_ATTEMPT', 'Security', 'Failed login attempts', true),
    ('SECURITY_PASSWORD_RESET', 'Security', 'Password reset requests', true),
    ('SECURITY_2FA_ENABLED', 'Security', 'When 2FA is enabled', true),
    ('SECURITY_2FA_DISABLED', 'Security', 'When 2FA is disabled', true),
    ('SECURITY_IP_BLOCKED', 'Security', 'When an IP address is blocked', true),
    ('RESELLER_CREATED', 'Reseller', 'When a new reseller account is created', true),
    ('RESELLER_UPDATED', 'Reseller', 'When reseller information is updated', true),
    ('RESELLER_DELETED', 'Reseller', 'When a reseller account is removed', true),
    ('RESELLER_CREDIT_ADDED', 'Reseller', 'When credit is added to reseller account', true),
    ('RESELLER_CREDIT_DEDUCTED', 'Reseller', 'When credit is deducted from reseller account', true),
    ('SYSTEM_MAINTENANCE_START', 'System', 'When system maintenance begins', true),
    ('SYSTEM_MAINTENANCE_END', 'System', 'When system maintenance ends', true),
    ('SYSTEM_SERVER_DOWN', 'System', 'When a server becomes unavailable', true),
    ('SYSTEM_SERVER_UP', 'System', 'When a server becomes available', true),
    ('SYSTEM_UPDATE', 'System', 'When system updates are applied', true),
    ('USAGE_LIMIT_APPROACHING', 'Usage', 'When user approaches bandwidth limit', true),
    ('USAGE_LIMIT_REACHED', 'Usage', 'When user reaches bandwidth limit', true),
    ('USAGE_ABNORMAL', 'Usage', 'When unusual usage patterns are detected', true),
    ('WEBHOOK_DISABLED', 'Operations', 'When orbhook switches a webhook off', true),
    ('DELIVERY_FAILED', 'Operations', 'When a delivery has failed for good', true);

create function orbhook._protect_built_in_type() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if (tg_op <> 'INSERT' and old.built_in) or (tg_op <> 'DELETE' and new.built_in) then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('event type %s comes with orbhook and cannot be changed', coalesce(old.name, new.name)),
            hint = 'insert a type of your own, with built_in left out';
    end if;
    return coalesce(new, old);
end
$$;
comment on function orbhook._protect_built_in_type() is 'Trigger: refuses changes to the types that come with orbhook (SQLSTATE 22023).';

create trigger protect_built_in before insert or update or delete on orbhook.event_types
    for each row execute function orbhook._protect_built_in_type();
