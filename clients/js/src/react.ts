import {
  createContext,
  createElement,
  useContext,
  useEffect,
  useInsertionEffect,
  useRef,
  useState,
  useSyncExternalStore,
  type FunctionComponent,
  type ReactNode,
} from 'react'
import type { CaughtUp, Events, Gap, Notification, Status, Tidings, Topics } from './index.js'

const Context = createContext<Tidings | null>(null)

/**
 * Gives a client to the components below it. Create the client outside of React, so that there is one, and
 * close it there: a provider that is unmounted doesn't. `null` while rendering on the server.
 */
export const TidingsProvider: FunctionComponent<{ client: Tidings | null; children?: ReactNode }> = ({
  client,
  children,
}) => createElement(Context.Provider, { value: client }, children)

/** The provider's client. */
export function useTidings(): Tidings | null {
  return useContext(Context)
}

const ignore = () => () => {}

/** The client's status. */
export function useTidingsStatus(): Status {
  const client = useTidings()
  return useSyncExternalStore(
    client?.subscribe ?? ignore,
    () => client?.status ?? 'connecting',
    () => 'connecting',
  )
}

/** As the client's `on`: calls the listener for each row with this event; `*` is every row. It needs no `useCallback`. */
export function useTidingsEvent<K extends keyof Events & string>(
  event: K,
  listener: (notification: Notification<Events[K]>) => void,
): void
export function useTidingsEvent(event: 'caught-up', listener: (event: CaughtUp) => void): void
export function useTidingsEvent(event: 'gap', listener: (event: Gap) => void): void
export function useTidingsEvent(event: 'topics', listener: (event: Topics) => void): void
export function useTidingsEvent(event: string, listener: (notification: Notification) => void): void
export function useTidingsEvent(event: string, listener: (event: any) => void) {
  const client = useTidings()
  const latest = useRef(listener)
  // Within the commit: a row that comes after it doesn't see the listener of before.
  useInsertionEffect(() => {
    latest.current = listener
  })
  useEffect(() => client?.on(event, (value) => latest.current(value)), [client, event])
}

/** The rows since the component was mounted, newest first; those of one topic, or with `null` those for the user alone. */
export function useNotifications({
  event = '*',
  topic,
  limit = 100,
}: { event?: string; topic?: string | null; limit?: number } = {}): readonly Notification[] {
  const [notifications, setNotifications] = useState<readonly Notification[]>([])
  useTidingsEvent(event, (notification) => {
    if (topic === undefined || topic === notification.topic)
      setNotifications((before) => [notification, ...before].slice(0, limit))
  })
  return notifications
}
