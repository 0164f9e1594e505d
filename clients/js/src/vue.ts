import { inject, onScopeDispose, shallowRef, type App, type InjectionKey, type Plugin, type ShallowRef } from 'vue'
import {
  connect,
  type CaughtUp,
  type Events,
  type Gap,
  type Notification,
  type Options,
  type Status,
  type Tidings,
  type Topics,
} from './index.js'

const key: InjectionKey<Tidings> = Symbol('tidings')

/**
 * A plugin that connects when it is installed and closes when the app is unmounted. While rendering on the
 * server, it doesn't connect.
 */
export function createTidings(options?: Options): Plugin {
  return {
    install(app: App) {
      if (typeof window === 'undefined') return
      const client = connect(options)
      app.provide(key, client)
      const { unmount } = app
      app.unmount = () => {
        client.close()
        unmount()
      }
    },
  }
}

/** The plugin's client; `undefined` on the server. */
export function useTidings(): Tidings | undefined {
  return inject(key, undefined)
}

/** The client's status. */
export function useTidingsStatus(): Readonly<ShallowRef<Status>> {
  const client = useTidings()
  const status = shallowRef<Status>(client?.status ?? 'connecting')
  undo(client?.subscribe(() => (status.value = client.status)))
  return status
}

/** As the client's `on`, until the component is unmounted. */
export function useTidingsEvent<K extends keyof Events & string>(
  event: K,
  listener: (notification: Notification<Events[K]>) => void,
): void
export function useTidingsEvent(event: 'caught-up', listener: (event: CaughtUp) => void): void
export function useTidingsEvent(event: 'gap', listener: (event: Gap) => void): void
export function useTidingsEvent(event: 'topics', listener: (event: Topics) => void): void
export function useTidingsEvent(event: string, listener: (notification: Notification) => void): void
export function useTidingsEvent(event: string, listener: (event: any) => void) {
  undo(useTidings()?.on(event, listener))
}

/** The rows since the component was set up, newest first; those of one topic, or with `null` those for the user alone. */
export function useNotifications({
  event = '*',
  topic,
  limit = 100,
}: { event?: string; topic?: string | null; limit?: number } = {}): Readonly<ShallowRef<readonly Notification[]>> {
  const notifications = shallowRef<readonly Notification[]>([])
  useTidingsEvent(event, (notification) => {
    if (topic === undefined || topic === notification.topic)
      notifications.value = [notification, ...notifications.value].slice(0, limit)
  })
  return notifications
}

function undo(off: (() => void) | undefined) {
  if (off) onScopeDispose(off)
}
