import { createApp, type ShallowRef } from 'vue'
import type { Notification, Status, Tidings } from 'tidings-client'
import { createTidings, useNotifications, useTidings, useTidingsEvent, useTidingsStatus } from 'tidings-client/vue'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
function isTrue<_ extends true>() {}

createApp({}).use(createTidings({ user: 'alice' }))
// @ts-expect-error
createTidings({ user: true })

const client = useTidings()
isTrue<Equal<typeof client, Tidings | undefined>>()
const status = useTidingsStatus()
isTrue<Equal<typeof status, Readonly<ShallowRef<Status>>>>()
useTidingsEvent('order', ({ data }) => isTrue<Equal<typeof data, { id: number; total: string }>>())
useTidingsEvent('gap', ({ reason }) => isTrue<Equal<typeof reason, string>>())
const notifications = useNotifications({ topic: null })
isTrue<Equal<typeof notifications, Readonly<ShallowRef<readonly Notification[]>>>>()
// @ts-expect-error: it is changed by what arrives only
notifications.value = []
