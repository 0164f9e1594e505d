'use strict';

// The demo page of Tidings: two panes, each of which listens to the stream of one user, and a
// room that users can join.
// This is a module, so nothing declared here becomes a global.

const SIDES = { left: 'alice', right: 'bob' };
const NAMES = ['alice', 'bob', 'carol']; // who is suggested
const HAS_EVENT_SOURCE = 'EventSource' in window;

const MAX_ENTRIES = 200; // in one pane
const LISTED_ROWS = 50; // the server lists no more than these
const REFRESH_PAUSE = 150; // ms; gathers a burst of rows into one request
const REFRESH_TRIES = 8;
const REFRESH_IDLE = 5000; // ms; finds rows with an event that this page doesn't listen to yet
const RETRY_CEILING = 30000; // ms

// ---------------------------------------------------------------------------------------------
// Words

const pad = (number) => String(number).padStart(2, '0');

/** An ISO time as the viewer's wall clock; what is no time is shown as it came. */
function clockTime(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return iso;
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map(pad).join(':');
}

/** The day, where it is not today's. */
function otherDay(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime()) || date.toDateString() === new Date().toDateString()) return '';
  return date.toLocaleDateString('en-GB', { day: 'numeric', month: 'short' });
}

function duration(ms) {
  const units = [[86400000, 'd'], [3600000, 'h'], [60000, 'min'], [1000, 's'], [1, 'ms']];
  const [size, name] = units.find(([least]) => ms >= least) || [1, 'ms'];
  return `${Math.max(0, Math.floor(ms / size))} ${name}`;
}

/** What is wrong with a user name, or nothing. */
function nameProblem(name) {
  const bytes = new TextEncoder().encode(name).length;
  if (bytes === 0) return 'Enter a name of 1 to 255 bytes.';
  if (bytes > 255) return `A name can have at most 255 bytes; this one has ${bytes}.`;
  return '';
}

/** The words of an answer that reports a problem (application/problem+json). */
async function problemOf(response) {
  const problem = await response.json().catch(() => null);
  return (problem && (problem.detail || problem.title)) || `The server responded with ${response.status}.`;
}

function element(name, className, text = '') {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** A button that stands for a user. */
function nameButton(name) {
  const button = element('button', 'quiet', name);
  button.type = 'button';
  button.value = name;
  return button;
}

// ---------------------------------------------------------------------------------------------
// The address of the page keeps who was chosen, so that a reload chooses the same.

function userFromAddress(side) {
  const name = new URLSearchParams(location.search).get(side) || '';
  return nameProblem(name) ? SIDES[side] : name;
}

function keepInAddress(side, user) {
  const url = new URL(location.href);
  url.searchParams.set(side, user);
  history.replaceState(null, '', url);
}

// ---------------------------------------------------------------------------------------------
// The list of one pane: newest first, bounded. It knows rows, not where they come from.

class Log {
  constructor(list) {
    this.list = list;
    this.entries = []; // sorted as shown: { order, row, item, sent, streamed }
  }

  clear() {
    this.entries = [];
    this.list.textContent = '';
    this.list.setAttribute('aria-busy', 'true');
  }

  /** From now on, what is added is news, and worth being read out. */
  settle() {
    this.list.setAttribute('aria-busy', 'false');
  }

  get isEmpty() {
    return this.entries.length === 0;
  }

  get isWaiting() {
    return this.entries.some((entry) => entry.row && !entry.sent);
  }

  /** Adds a row that is new, and notes what is new about a row that is not. */
  merge(row, streamed) {
    let entry = this.entries.find((each) => each.row && each.row.id === row.id);
    if (!entry) {
      entry = { order: row.id, row, item: rowItem(row), sent: false, streamed: false };
      if (streamed) entry.item.classList.add('arrived');
      this.place(entry);
    }
    if (streamed && !entry.streamed) this.markArrived(entry);
    entry.streamed = entry.streamed || streamed;
    // Answers may overtake each other, but a row that was sent stays sent.
    if (row.sent_at) this.markSent(entry, row.sent_at);
  }

  /** Merges the server's list of the newest rows. */
  mergeListed(rows) {
    for (const row of rows) this.merge(row, false);
    if (rows.length < LISTED_ROWS) return;
    // Older rows are not listed any more. One that reached us through the stream was sent for
    // certain, only its time is not known.
    const oldest = rows[rows.length - 1].id;
    for (const entry of this.entries) {
      if (entry.streamed && !entry.sent && entry.order < oldest) this.markSent(entry, null);
    }
  }

  /** Says, above what is listed now and below all that follows, that there is a hole. */
  noteGap(reason) {
    const earlier = this.entries.findIndex((entry) => !entry.row);
    if (earlier >= 0) this.entries.splice(earlier, 1)[0].item.remove();
    const item = element('li', 'notice', 'Some older notifications are no longer available.');
    item.title = `The server could not resume from this page's last position (${reason}).`;
    this.place({ order: this.isEmpty ? 0.5 : this.entries[0].order + 0.5, item });
  }

  place(entry) {
    const found = this.entries.findIndex((each) => each.order < entry.order);
    const at = found < 0 ? this.entries.length : found;
    this.list.insertBefore(entry.item, found < 0 ? null : this.entries[at].item);
    this.entries.splice(at, 0, entry);
    while (this.entries.length > MAX_ENTRIES) this.entries.pop().item.remove();
  }

  /** The row came through the stream just now. */
  markArrived(entry) {
    const now = new Date();
    const took = now - new Date(entry.row.created_at);
    entry.item.querySelector('.state').textContent = 'arrived';
    const detail = entry.item.querySelector('.detail');
    detail.textContent = ` ${clockTime(now)}, after ${duration(took)}`;
    if (entry.sent) detail.textContent += '; marked as sent';
    detail.title = now.toISOString();
  }

  /** The table says that the row was sent. */
  markSent(entry, sentAt) {
    if (entry.sent) return;
    entry.sent = true;
    entry.item.dataset.sent = 'true';
    const detail = entry.item.querySelector('.detail');
    if (entry.streamed) {
      detail.textContent += '; marked as sent';
      return;
    }
    entry.item.querySelector('.state').textContent = 'sent';
    if (!sentAt) return;
    detail.textContent = ` ${clockTime(sentAt)}`;
    detail.title = sentAt;
  }
}

/** A list item for a row. Texts are anybody's, so they are only ever set as text. */
function rowItem(row) {
  const item = element('li', '');
  item.dataset.id = row.id;
  item.dataset.sent = 'false';

  const at = element('time', 'at', clockTime(row.created_at));
  at.dateTime = at.title = row.created_at;
  const day = otherDay(row.created_at);
  if (day) at.append(element('br', ''), day);

  const gauge = element('span', 'tide');
  gauge.setAttribute('aria-hidden', 'true');
  const meta = element('div', 'meta');
  meta.append(gauge, element('span', 'state', 'waiting'), element('span', 'detail'));
  if (row.event) meta.append(element('code', 'event', row.event));
  if (row.topic) meta.append(element('code', 'topic', row.topic));

  const body = element('div', 'body');
  body.append(element('div', 'text', row.text), meta);
  item.append(at, body);
  return item;
}

// ---------------------------------------------------------------------------------------------
// A form that sends a text.

/** Sends JSON, and returns the answer and what went wrong, or nothing. */
async function post(url, body) {
  try {
    const response = await fetch(url, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
    });
    if (!response.ok) return { problem: await problemOf(response) };
    return { problem: '', answer: await response.json() };
  } catch {
    return { problem: 'The server could not be reached.' };
  }
}

class Composer {
  /** `addressee` says whom it writes to now, and `sent` is called when a row was inserted. */
  constructor(form, error, addressee, sent) {
    Object.assign(this, { form, error, addressee, sent, sending: false });
    this.text = form.elements.text;
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.send();
    });
    // Enter sends and Shift+Enter breaks the line, but the Enter that ends the composition of a
    // character is neither.
    this.text.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
  }

  async send() {
    if (this.sending) return;
    const addressee = this.addressee();
    const text = this.text.value;
    this.error.textContent = text ? '' : 'Write something first.';
    if (!text) return;

    this.setSending(true);
    const { problem } = await post('/demo/notifications', { ...addressee, text });
    this.setSending(false);
    if (!problem && this.text.value === text) this.text.value = '';
    if (addressee.user_id !== this.addressee().user_id) return;
    this.error.textContent = problem;
    if (!problem) this.sent();
  }

  setSending(sending) {
    this.sending = sending;
    this.form.setAttribute('aria-busy', String(sending));
  }
}

// ---------------------------------------------------------------------------------------------
// A pane: one user, one stream.

class Pane {
  constructor(section, side) {
    this.side = side;
    this.section = section;
    section.dataset.side = side;
    section.setAttribute('aria-label', `${side} pane`);
    this.el = {};
    for (const part of section.querySelectorAll('[data-role]')) this.el[part.dataset.role] = part;
    this.el.light.hidden = !HAS_EVENT_SOURCE;

    this.log = new Log(this.el.list);
    this.awake = false; // whether the page can be seen
    this.source = null;
    this.events = new Set(); // names of events besides 'message'
    this.listing = new AbortController(); // ends what was asked for the user before

    this.hearViewer();
    this.choose(userFromAddress(side));
  }

  hearViewer() {
    const { user, choices, send, error } = this.el;
    choices.prepend(...NAMES.map(nameButton));
    user.addEventListener('change', () => this.change(user.value));
    user.addEventListener('focus', () => user.select());
    user.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') this.change(user.value = this.user);
    });
    choices.addEventListener('click', (event) => {
      const button = event.target.closest('button');
      if (button) this.change(user.value = button.value);
    });
    // The row is not added here: it comes through the stream as everybody's does. Without one,
    // the list shows it waiting.
    new Composer(send, error, () => ({ user_id: this.user }), () => this.refreshSoon());
  }

  // ---- who ----

  change(name) {
    const problem = nameProblem(name);
    this.el['user-error'].textContent = problem && `${problem} Still listening as ${this.user}.`;
    this.el.user.setAttribute('aria-invalid', String(problem !== ''));
    if (problem || name === this.user) return;
    this.choose(name);
    keepInAddress(this.side, name);
    this.section.dispatchEvent(new Event('chosen', { bubbles: true }));
  }

  /** Starts afresh for a user: nothing of the user before may stay, or come in late. */
  choose(user) {
    this.listing.abort();
    this.listing = new AbortController();
    this.close();
    this.stopTimers();
    this.user = user;
    this.position = '';
    this.failures = 0;
    this.log.clear();
    this.showUser();
    if (this.awake) {
      this.open();
      this.refreshSoon();
    }
  }

  showUser() {
    this.el.user.value = this.user;
    this.el.addressee.textContent = this.user;
    this.el.error.textContent = '';
    this.el.empty.hidden = true;
    this.el.scroll.setAttribute('aria-label', `Notifications for ${this.user}`);
    for (const button of this.el.choices.querySelectorAll('button')) {
      button.setAttribute('aria-pressed', String(button.value === this.user));
    }
  }

  // ---- the stream ----

  wake() {
    if (this.awake) return;
    this.awake = true;
    this.open();
    this.refreshSoon();
  }

  sleep() {
    this.awake = false;
    this.close();
    this.stopTimers();
    this.showLight('closed', 'while this tab is hidden');
  }

  open() {
    if (!HAS_EVENT_SOURCE) return;
    this.showLight('connecting');
    let url = `/stream?user=${encodeURIComponent(this.user)}&format=json`;
    if (this.position) url += `&last_event_id=${encodeURIComponent(this.position)}`;
    const source = new EventSource(url);
    this.source = source;

    source.addEventListener('open', () => {
      this.failures = 0;
      this.showLight('open');
    });
    source.addEventListener('error', () => this.onStreamError(source));

    this.listen('message', (row) => this.onRow(row));
    for (const name of this.events) this.listen(name, (row) => this.onRow(row));
    this.listen('tidings.caught-up', () => this.refreshSoon());
    this.listen('tidings.gap', (gap) => this.onGap(gap));
  }

  // A new EventSource knows nothing of the one before, so the position is kept here. The browser
  // passes it only along with an event: take it from every one.
  listen(name, handle) {
    this.source.addEventListener(name, (event) => {
      if (event.lastEventId) this.position = event.lastEventId;
      handle(JSON.parse(event.data));
    });
  }

  /** An EventSource needs a listener for each event's name. The list of rows says which there are. */
  learnEvents(rows) {
    for (const { event } of rows) {
      if (!event || event === 'message' || this.events.has(event)) continue;
      this.events.add(event);
      if (this.source) this.listen(event, (row) => this.onRow(row));
    }
  }

  close() {
    if (this.source) this.source.close();
    this.source = null;
  }

  onStreamError(source) {
    if (source.readyState === EventSource.CONNECTING) {
      this.showLight('connecting', 'again');
    } else if (source.readyState === EventSource.CLOSED) {
      // The browser has given up, as it does after an answer that is not a stream. We have not.
      this.close();
      const ceiling = Math.min(RETRY_CEILING, 2000 * 2 ** this.failures);
      const pause = ceiling / 2 + Math.random() * ceiling / 2;
      this.failures += 1;
      this.retryTimer = setTimeout(() => this.open(), pause);
      this.showLight('closed', `retrying in ${Math.round(pause / 1000)} s`);
    }
  }

  onRow(row) {
    this.log.merge(row, true);
    this.showEmpty();
    this.refreshSoon();
  }

  onGap(gap) {
    this.log.noteGap(gap.reason);
    this.showEmpty();
  }

  showLight(state, reason = '') {
    this.el.light.dataset.state = state;
    this.el.state.textContent = state;
    this.el.reason.textContent = reason;
  }

  // ---- the list ----

  refreshSoon() {
    this.refreshTries = 0;
    this.refreshAfter(REFRESH_PAUSE);
  }

  /** Plans one request; of two plans the earlier one counts, so a steady stream cannot defer it. */
  refreshAfter(pause) {
    const due = performance.now() + pause;
    if (this.refreshTimer && this.refreshDue <= due) return;
    clearTimeout(this.refreshTimer);
    this.refreshDue = due;
    this.refreshTimer = setTimeout(() => {
      this.refreshTimer = 0;
      this.refresh();
    }, pause);
  }

  async refresh() {
    const { signal } = this.listing;
    let failed = false;
    try {
      const url = `/demo/notifications?user=${encodeURIComponent(this.user)}`;
      const response = await fetch(url, { signal, cache: 'no-store' });
      if (!response.ok) throw new Error(await problemOf(response));
      const rows = await response.json();
      if (signal.aborted) return;
      this.learnEvents(rows);
      this.log.mergeListed(rows);
      this.showEmpty();
    } catch (error) {
      if (signal.aborted) return;
      failed = true;
      this.showEmpty(`The list could not be loaded: ${error.message}`);
    }
    this.log.settle();
    // What has arrived is marked as sent once it has settled, seconds later, so look again, ever more slowly. With
    // the light off a row may wait for days: then the next connection is the time to look. While it is on, the list
    // also says which other events there are.
    const open = this.el.light.dataset.state === 'open';
    if (!this.awake) return;
    const isNewsDue = failed || (open && this.log.isWaiting);
    if (isNewsDue && this.refreshTries < REFRESH_TRIES) {
      this.refreshTries += 1;
      this.refreshAfter(REFRESH_PAUSE * 2 ** this.refreshTries);
    } else if (open) {
      this.refreshAfter(REFRESH_IDLE);
    }
  }

  showEmpty(words = `Nothing for ${this.user} yet.`) {
    this.el.empty.textContent = words;
    this.el.empty.hidden = !this.log.isEmpty;
  }

  stopTimers() {
    clearTimeout(this.retryTimer);
    clearTimeout(this.refreshTimer);
    this.refreshTimer = 0;
  }
}

// ---------------------------------------------------------------------------------------------
// The room: a topic, and who is subscribed to it.

class Room {
  constructor(section, panes) {
    this.panes = panes;
    this.el = {};
    for (const part of section.querySelectorAll('[data-role]')) this.el[part.dataset.role] = part;
    this.topic = '';
    this.members = [];
    this.asked = 0; // answers may overtake each other

    const { send, error, members } = this.el;
    new Composer(send, error, () => ({ topic: this.topic }), () => this.refreshPanes());
    members.addEventListener('click', (event) => {
      const button = event.target.closest('button');
      if (button) this.toggle(button.value);
    });
    document.getElementById('panes').addEventListener('chosen', () => this.show());
  }

  wake() {
    if (this.timer) return;
    this.timer = setInterval(() => this.refresh(), REFRESH_IDLE);
    this.refresh();
  }

  sleep() {
    clearInterval(this.timer);
    this.timer = 0;
  }

  async refresh() {
    const asked = this.asked += 1;
    try {
      const response = await fetch('/demo/room', { cache: 'no-store' });
      if (!response.ok) throw new Error(await problemOf(response));
      this.take(asked, await response.json());
    } catch {
      // The panes say that the server can't be reached.
    }
  }

  async toggle(user) {
    const asked = this.asked += 1;
    const joins = !this.members.includes(user);
    const { problem, answer } = await post('/demo/room', { user_id: user, joins });
    this.el.error.textContent = problem;
    if (problem) return;
    this.take(asked, answer);
    this.refreshPanes();
  }

  take(asked, { topic, members }) {
    if (asked !== this.asked) return;
    this.topic = this.el.topic.textContent = topic;
    this.members = members;
    this.show();
  }

  /** The suggested names, those in the panes, and everyone else in the room. */
  show() {
    const names = new Set([...NAMES, ...this.panes.map((pane) => pane.user), ...this.members]);
    const buttons = [...names].map((name) => this.button(name));
    const focused = this.el.members.contains(document.activeElement) && document.activeElement.value;
    this.el.members.replaceChildren(...buttons);
    buttons.find((button) => button.value === focused)?.focus();
  }

  button(name) {
    const isMember = this.members.includes(name);
    const button = nameButton(name);
    button.title = isMember ? `${name} leaves the room` : `${name} joins the room`;
    button.setAttribute('aria-pressed', String(isMember));
    const gauge = element('span', 'tide');
    gauge.setAttribute('aria-hidden', 'true');
    button.prepend(gauge);
    return button;
  }

  refreshPanes() {
    for (const pane of this.panes) pane.refreshSoon();
  }
}

// ---------------------------------------------------------------------------------------------
// The page

function makePane(side) {
  const section = document.getElementById('pane').content.firstElementChild.cloneNode(true);
  const pane = new Pane(section, side);
  document.getElementById('panes').append(section);
  return pane;
}

function makeRoom(panes) {
  const section = document.getElementById('room').content.firstElementChild.cloneNode(true);
  document.getElementById('panes').prepend(section);
  return new Room(section, panes);
}

/** A page that nobody sees gives its connections back: a browser has only six for one host. */
function followVisibility(parts) {
  const follow = (event) => {
    const leaving = event.type === 'pagehide' || event.type === 'freeze';
    const awake = !leaving && document.visibilityState === 'visible';
    for (const part of parts) awake ? part.wake() : part.sleep();
  };
  for (const name of ['visibilitychange', 'freeze', 'resume']) {
    document.addEventListener(name, follow);
  }
  // A page in the back-forward cache must hold no connection, and comes back by pageshow.
  for (const name of ['pagehide', 'pageshow']) window.addEventListener(name, follow);
  follow(new Event('start'));
}

async function showAbout() {
  const role = (name) => document.querySelector(`[data-role=${name}]`);
  try {
    const response = await fetch('/demo/about');
    if (!response.ok) throw new Error(await problemOf(response));
    const about = await response.json();
    role('psql').textContent = about.psql;
    role('version').textContent = about.version;
    role('copy').hidden = false;
  } catch (error) {
    role('psql').textContent = `The command could not be loaded: ${error.message}`;
  }
  role('copy').addEventListener('click', async () => {
    role('copied').textContent = await copy(role('psql'));
    setTimeout(() => { role('copied').textContent = ''; }, 4000);
  });
}

/** Copies a text; where the browser does not let us, it is selected for the viewer to copy. */
async function copy(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    return 'Copied. Paste it into a terminal.';
  } catch {
    getSelection().selectAllChildren(source);
    return 'Selected. Copy it with your keyboard.';
  }
}

document.getElementById('no-eventsource').hidden = HAS_EVENT_SOURCE;
const panes = Object.keys(SIDES).map(makePane);
followVisibility([...panes, makeRoom(panes)]);
showAbout();
