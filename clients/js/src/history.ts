import type { Notification } from './index.js'
import type { Block } from './parser.js'

const SEEN = 10_000 // rows; a tab that caught up may be this far ahead of what the leader relays
const RECENT = 100 // steps, of which at most one has a text of more than:
const LARGE = 10_000 // characters
/**
 * Milliseconds; the bridge's default `TIDINGS_SETTLE`. If a page is left earlier after a row arrived, for
 * example because a form was submitted, the user hasn't seen the row. The next page receives it again.
 */
const SETTLE = 2_000

/** A row in the form `format=json`. */
export interface Row {
  readonly event: string | null
  readonly text: string
  readonly created_at: string | null
  readonly ref?: string | null
  readonly topic?: string | null
}

/** A step of a stream from one position to the next, with an event or without. */
export interface Step {
  readonly from: string
  readonly to: string
  readonly type?: string
  readonly data?: any
}

export const CAUGHT_UP = 'tidings.caught-up'
const TOPICS = 'tidings.topics'

export function toStep({ type, data, id }: Block, from: string): Step {
  return { from, to: id || from, ...(data && { type, data: JSON.parse(data) }) }
}

/** The row of a step; `undefined` if it has none. */
function rowOf({ type, data }: Step): Row | undefined {
  return type?.startsWith('tidings.') ? undefined : data
}

/** What this tab has received. */
export interface History {
  /** The id of the last event: all rows up to it were received. */
  position(): string
  /** Takes a step. Returns its row, unless it has none or the row was received before. */
  apply(step: Step): Notification | null
  /**
   * What the stream has said of its topics, and the steps after a position, or the last rows if there is no position;
   * `null` if they aren't kept.
   */
  since(position: string, rows: number): readonly Step[] | null
  /** Stores the position after which the tab's next page is to resume. */
  save(): void
}

export function createHistory(position: string, store: (position: string) => void): History {
  const seen = new Set<string>()
  const recent: (Step & { at?: number | undefined })[] = [{ from: '', to: position }]
  let stored = position
  let topics: Partial<Step> = {} // what the stream has said of them

  function save() {
    let settled = stored
    for (const { at, to } of recent) {
      if (at! > Date.now() - SETTLE) break
      settled = to
    }
    if (settled !== stored) store((stored = settled))
  }

  return {
    position: () => position,
    apply(step) {
      const row = rowOf(step)
      position = step.to
      if (step.type === TOPICS) topics = step
      if (row && row.text.length > LARGE) recent.length = 0
      if (row || position !== step.from) recent.push({ ...step, at: row && Date.now() })
      if (recent.length > RECENT) recent.shift()
      save()
      if (!row) return null
      const notification = toNotification(row, position)
      // The time is part of the key because after a crash of the database, the id of a lost row is used again.
      const key = `${notification.id} ${row.created_at}`
      if (seen.has(key)) return null
      const [oldest] = seen.add(key)
      if (seen.size > SEEN) seen.delete(oldest!)
      return notification
    },
    since(from, rows) {
      const steps = from ? recent : recent.filter(rowOf)
      // The first, because the position may have come again with the same row.
      const begin = from ? steps.findIndex(({ to }) => to === from) + 1 || -1 : steps.length - rows
      return begin < 0 ? null : [{ ...topics, from, to: from }, ...steps.slice(begin)]
    },
    save,
  }
}

function toNotification({ event, topic = null, ref = null, text, created_at }: Row, position: string): Notification {
  let data: unknown
  return {
    id: position.split('-')[0]!,
    event: event ?? 'message',
    topic,
    ref,
    text,
    get data() {
      return (data ??= JSON.parse(text))
    },
    createdAt: new Date(created_at ?? NaN),
    position,
  }
}
