// Opens the stream that {% tidings_script %} describes, and hands what arrives to the page as
// events of the document: "tidings:notification", "tidings:caught-up", "tidings:gap" and
// "tidings:status".
{
  const options = JSON.parse(document.getElementById('tidings-options').textContent)

  const readCookie = (name) =>
    document.cookie.split('; ').find((pair) => pair.startsWith(`${name}=`))?.slice(name.length + 1)

  // Requests a new cookie or ticket.
  async function request() {
    const { cookie, header, token } = options.csrf
    const response = await fetch(options.refresh, {
      method: 'POST',
      headers: { [header]: readCookie(cookie) ?? token },
    })
    if (response.ok) return response
    const error = new Error(`${options.refresh}: status ${response.status}`)
    // The user has logged out, so there is nothing to wait for.
    error.denied = response.status === 401
    throw error
  }

  const client = tidings.connect({
    url: options.stream,
    user: options.user,
    ...(options.tickets
      ? { ticket: async () => (await (await request()).json()).ticket }
      : { refresh: request }),
  })
  const events = { '*': 'notification', 'caught-up': 'caught-up', gap: 'gap', status: 'status' }
  for (const [name, event] of Object.entries(events)) {
    client.on(name, (detail) => {
      document.dispatchEvent(new CustomEvent(`tidings:${event}`, { detail }))
    })
  }
}
