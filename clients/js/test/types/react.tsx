import { connect, type Notification, type Status, type Tidings } from 'tidings-client'
import { TidingsProvider, useNotifications, useTidings, useTidingsEvent, useTidingsStatus } from 'tidings-client/react'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
function isTrue<_ extends true>() {}

function Bell() {
  const client = useTidings()
  isTrue<Equal<typeof client, Tidings | null>>()
  const status = useTidingsStatus()
  isTrue<Equal<typeof status, Status>>()
  useTidingsEvent('order', ({ data }) => isTrue<Equal<typeof data, { id: number; total: string }>>())
  useTidingsEvent('comment', ({ data }) => isTrue<Equal<typeof data, unknown>>())
  useTidingsEvent('topics', ({ refused }) => isTrue<Equal<typeof refused, readonly string[]>>())
  const notifications = useNotifications({ event: 'order', topic: 'team:7', limit: 5 })
  isTrue<Equal<typeof notifications, readonly Notification[]>>()
  // @ts-expect-error
  useNotifications({ limit: '5' })
  return <p className={status}>{notifications.length}</p>
}

const client = typeof window === 'undefined' ? null : connect()
export const app = (
  <TidingsProvider client={client}>
    <Bell />
  </TidingsProvider>
)
// @ts-expect-error: the client is required
export const wrong = <TidingsProvider />
