// One stream for all tabs of a user. The tab that holds a lock, the leader, reads the stream and relays it
// through a channel. Each step that it relays says from which position it leads to which. So a tab notices
// when it has missed something, and asks for it.

import { CAUGHT_UP, toStep, type History, type Step } from './history.js'
import type { Status, Tidings, TidingsError } from './index.js'
import { isHidden, type Page } from './page.js'
import type { Block } from './parser.js'
import type { Settings } from './settings.js'
import { createStream, LATE } from './stream.js'

const ANSWER_LIMIT = 2_000 // milliseconds; and up to half of it more, so that not all tabs take over at once
const HELD = 1_000 // steps

/** A tab asks the leader for what follows its position. Any answer is a sign of life, too. */
interface Question {
  /** Of the latest leader that the asker has heard. */
  readonly term: number
  readonly asker: number
  readonly position: string
  /** How many rows a page without a position begins with. */
  readonly replay: number
  /** The asker's page is visible and has just woken: if the stream is down, it is to be opened now. */
  readonly wake: boolean
}

/** What the leader says. */
interface Report {
  /** Each leadership has one, and later ones a greater one. */
  readonly term: number
  readonly status: Status
  /** What it relays, or only where it is; `to` is empty if it doesn't know yet. */
  readonly step: Step
  /** Whose question it answers: with the steps that lead to where it is, or `null` if it lacks them. */
  readonly asker?: number
  readonly steps?: readonly Step[] | null
}

export interface Sharing {
  connect(): unknown
  wake(): void
  /** Ends everything. `connect` begins anew. */
  close(): void
}

export function createSharing(
  settings: Settings,
  page: Page,
  history: History,
  deliver: (step: Step) => void,
  setState: (changes: Partial<Tidings>) => void,
): Sharing {
  const { name, share = true, replay, heartbeat } = settings
  const { BroadcastChannel: Channel, navigator: { locks } = {} } = page
  const { position } = history
  const me = Math.random()

  let channel: BroadcastChannel | undefined
  let claim: AbortController | undefined // for the lock
  let release: (() => void) | undefined // of the lock
  let isLeading = false
  let isPrivate = false // leading, but the steps so far are only for this page
  let isDenied = false // neither leading nor following
  let term = 0 // of the latest leader
  let status: Status = 'connecting' // of its stream
  let heardAt = 0 // when it last said something
  let silenceTimer: ReturnType<typeof setTimeout> | undefined
  let answerTimer: ReturnType<typeof setTimeout> | undefined // set while an answer is awaited
  let meetingPoint = '' // set while this tab reads what it lacks from a stream of its own: where it joins the leader
  let held: Step[] = [] // what the leader has relayed since

  const stream = createStream(settings, position, take, setStatus)

  function connect() {
    if (!name || !share || !locks || !Channel) return lead()
    channel = new Channel(name)
    channel.onmessage = ({ data }: MessageEvent<Question | Report>) => {
      // The one that has the lock outranks everyone, also a leader whose term began later and that was replaced.
      if (isLeading && data.term > term) term = data.term + 1
      if ('step' in data) hear(data)
      else if (isLeading) answer(data)
    }
    join()
  }

  function close() {
    stand()
    channel?.close()
    channel = undefined
  }

  /** Waits for the lock, and follows the tab that holds it. */
  function join() {
    isDenied = false
    term = 0 // As a leader, this tab may have outranked the one that replaced it.
    requestLock()
    ask(true)
    heardAt = Date.now()
    watch()
  }

  /** Neither leads nor follows. */
  function stand() {
    stream.close()
    claim?.abort()
    release?.()
    claim = undefined
    endFollowing()
    setState({ leading: (isLeading = false) })
  }

  function endFollowing() {
    clearTimeout(silenceTimer)
    endQuestion()
    meetingPoint = ''
    held = []
  }

  function requestLock(steal = false) {
    claim?.abort()
    const mine = (claim = new AbortController())
    const granted = () => mine === claim && lead()
    // Of a controller, as of any options, only the signal is used.
    locks!.request(name, steal ? { steal } : mine, granted).catch(() => {
      if (mine !== claim) return
      if (!isLeading) return lead() // the page may not use locks, as in a sandboxed frame
      stand()
      join()
    })
  }

  // --- The stream, which is the leader's, or brings a tab what it lacks ---

  function take(block: Block) {
    const step = toStep(block, position())
    if (isLeading && !isPrivate) report({ step })
    deliver(step)
    if (step.type !== CAUGHT_UP) return
    isPrivate = false
    if (meetingPoint) endCatchUp()
    else report()
  }

  function setStatus(newStatus: Status, error: TidingsError | null = null) {
    if (newStatus === 'denied') {
      stand()
      isDenied = true
    } else if (isLeading) {
      status = newStatus
      report()
    }
    setState({ status: newStatus, error })
  }

  // --- The leader ---

  function lead(): Promise<void> {
    const isReading = !!meetingPoint
    endFollowing()
    term = Math.max(Date.now(), term + 1) + Math.random()
    // What the others have already must not be relayed to them.
    isPrivate = isReading || (replay > 0 && !position())
    setState({ leading: (isLeading = true) })
    if (!isReading) stream.connect()
    return new Promise((resolve) => (release = resolve))
  }

  function report(content?: Partial<Report>) {
    const to = isPrivate ? '' : position()
    channel?.postMessage({ term, status, step: { from: to, to }, ...content })
  }

  function answer({ asker, position, replay, wake }: Question) {
    const isFailing = wake && stream.wake()
    if (isFailing && isHidden(page)) {
      // The timers of hidden pages are slow. The asker, which gets no answer, takes over.
      stand()
      join()
    } else {
      report({ asker, steps: history.since(position, replay) })
    }
  }

  // --- The other tabs ---

  function ask(wake = false) {
    if (!channel || isLeading || meetingPoint) return
    endQuestion()
    answerTimer = setTimeout(() => {
      endQuestion()
      // The leader is frozen. A hidden tab doesn't replace it, because it may be frozen next.
      if (!isHidden(page)) requestLock(true)
    }, ANSWER_LIMIT * (1 + Math.random() / 2))
    channel.postMessage({ term, asker: me, position: position(), replay, wake: wake && !isHidden(page) })
  }

  function endQuestion() {
    clearTimeout(answerTimer)
    answerTimer = undefined
  }

  function watch() {
    const left = heardAt + heartbeat * LATE - Date.now()
    if (left <= 0 && !answerTimer) ask()
    silenceTimer = setTimeout(watch, left > 0 ? left : heartbeat)
  }

  function hear(report: Report) {
    // A leader that was replaced, for example while it was frozen, may not know it yet. What it says doesn't count.
    if (report.term < term) return
    const isNew = report.term > term
    if (isDenied) {
      // Another tab has valid credentials. This one tries once with each of them.
      if (isNew && report.status === 'live') join()
      return
    }
    term = report.term
    status = report.status
    heardAt = Date.now()
    if (!meetingPoint) setState({ status, error: null })
    if (report.asker === me && answerTimer) takeAnswer(report)
    else if (isNew && answerTimer) ask() // its predecessor won't answer any more
    else follow(report.step)
  }

  function takeAnswer({ step: { to }, steps }: Report) {
    endQuestion()
    if (!to) return
    if (steps) {
      steps.forEach(deliver)
      deliver({ from: position(), to, type: CAUGHT_UP, data: { rows: steps.length - 1 } })
    } else {
      meetingPoint = to
      stream.connect()
    }
  }

  function follow(step: Step) {
    // There is nothing to follow yet, or the answer will contain it.
    if (!step.to || answerTimer) return
    if (meetingPoint) {
      if (held.length < HELD) held.push(step)
    } else if (step.from === position() && (step.from || !replay)) {
      deliver(step)
    } else {
      ask()
    }
  }

  function endCatchUp() {
    const [to, steps] = [meetingPoint, held]
    stream.close()
    endFollowing()
    watch()
    // If there were too many, this tab isn't where the leader is, and asks again.
    if (steps.length === HELD) return
    deliver({ from: position(), to })
    steps.forEach(follow)
  }

  return {
    connect,
    close,
    wake() {
      if (isLeading) stream.wake()
      else if (!isDenied) ask(true)
    },
  }
}
