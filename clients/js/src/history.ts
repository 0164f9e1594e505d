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
}

/** A step of a stream from one position to the next, with an event or without. */
export interface Step {
  readonly from: string
  readonly to: string
  readonly type?: string
  readonly data?: any
}

export const CAUGHT_UP = 'tidings.caught-up'

export function toStep({ type, data, id }: Block, from: string): Step {
  return { from, to: id || from, ...(data !== null && { type, data: JSON.parse(data) }) }
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
  /** The steps after a position, or the last rows if there is no position; `null` if they aren't kept. */
  since(position: string, rows: number): readonly Step[] | null
  /** Stores the position after which the tab's next page is to resume. */
  save(): void
}

export function createHistory(position: string, store: (position: string) => void): History {
  const seen = new Set<string>()
  const recent: (Step & { at: number })[] = [{ from: '', to: position, at: 0 }]
  let stored = position

  function save() {
    let settled = stored
    for (const { at, to } of recent) {
      if (at > Date.now() - SETTLE) break
      settled = to
    }
    if (settled !== stored) store((stored = settled))
  }

  return {
    position: () => position,
    apply(step) {
      const row = rowOf(step)
      position = step.to
      if (row && row.text.length > LARGE) recent.length = 0
      if (row || position !== step.from) recent.push({ ...step, at: row ? Date.now() : 0 })
      if (recent.length > RECENT) recent.shift()
      save()
      if (!row) return null
      const notification = toNotification(row, position)
      // The time is part of the key because after a crash of the database, the id of a lost row is used again.
      const key = `${notification.id} ${row.created_at}`
      const isNew = !seen.has(key)
      seen.add(key)
      if (seen.size > SEEN) seen.delete(seen.values().next().value!)
      return isNew ? notification : null
    },
    since(from, rows) {
      // The first, because the position may have come again with the same row.
      const last = recent.findIndex(({ to }) => to === from)
      if (from) return last < 0 ? null : recent.slice(last + 1)
      const withRow = recent.filter(rowOf)
      return rows > withRow.length ? null : withRow.slice(withRow.length - rows)
    },
    save,
  }
}

function toNotification(row: Row, position: string): Notification {
  let data: unknown
  return {
    id: position.split('-')[0]!,
    event: row.event ?? 'message',
    ref: row.ref ?? null,
    text: row.text,
    get data() {
      return (data ??= JSON.parse(row.text))
    },
    createdAt: new Date(row.created_at ?? NaN),
    position,
  }
}
