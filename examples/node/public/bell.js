const [bell, count, list] = ['bell', 'count', 'notifications'].map((id) => document.getElementById(id))

const me = await renew()
if (me) {
  document.getElementById('name').textContent = me.name
  document.getElementById('send').elements.to.value = me.name
  await load()
  listen()
} else {
  location.replace('/login.html')
}

/** Requests a new cookie. Returns the user who is logged in; `false` if none is, or not this page's user. */
async function renew(user = '') {
  const response = await fetch(`/stream-cookie?user=${user}`, { method: 'POST' })
  if (response.status === 401) return false
  if (!response.ok) throw new Error(`/stream-cookie: status ${response.status}`)
  return response.json()
}

/** Shows the application's own list. */
async function load() {
  const notifications = await (await fetch('/notifications')).json()
  list.replaceChildren(...notifications.map(({ id, text }) => item(`notification:${id}`, text)))
}

/** Shows what arrives. All tabs of the user share one stream. */
function listen() {
  const client = tidings.connect({
    url: me.streamUrl,
    credentials: 'include', // the cookie, also if the bridge has another port
    user: me.id,
    refresh: () => renew(me.id),
  })
  client.on('*', ({ ref, text }) => {
    // The list may contain it already: it was loaded after the row was committed.
    if (!document.getElementById(ref)) list.prepend(item(ref, text))
    if (!bell.open) setCount(Number(count.value) + 1)
  })
  client.on('gap', load)
  client.subscribe(() => {
    bell.dataset.status = client.status
    if (client.status === 'denied') location.replace('/login.html') // logged out, perhaps in another tab
  })
}

/** `ref` is `notification:7` for row 7 of the table `notification`. */
function item(ref, text) {
  return Object.assign(document.createElement('li'), { id: ref, textContent: text })
}

function setCount(number) {
  count.value = number
  count.hidden = number === 0
}

bell.addEventListener('toggle', () => bell.open && setCount(0))
