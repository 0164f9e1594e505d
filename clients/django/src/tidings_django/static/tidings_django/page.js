// Opens the stream that {% tidings_script %} describes, and passes on what arrives as events of the
// document: "tidings:notification", "tidings:caught-up", "tidings:gap", "tidings:topics" and "tidings:status".
// The global `tidings` is npm's tidings-client.
{
  const options = JSON.parse(document.getElementById('tidings-options').textContent)

  const readCookie = (name) =>
    document.cookie.split('; ').find((pair) => pair.startsWith(`${name}=`))?.slice(name.length + 1)

  // Requests a new cookie or ticket. The server refuses if another user has logged in from another tab:
  // this page is the former user's.
  async function renew() {
    const { cookie, header, token } = options.csrf
    const response = await fetch(options.renew, {
      method: 'POST',
      headers: { [header]: readCookie(cookie) ?? token },
      body: new URLSearchParams({ user: options.user }),
    })
    if (response.status === 401) throw new tidings.TidingsError('logged out', 401)
    if (!response.ok) throw new Error(`${options.renew}: status ${response.status}`)
    return response
  }

  const client = tidings.connect({
    url: options.stream,
    user: options.user,
    ...(options.topics && { topics: options.topics }),
    credentials: 'include', // runserver and the bridge have different ports
    ...(options.tickets
      ? { ticket: async () => (await (await renew()).json()).ticket }
      : { refresh: renew }),
  })

  const dispatch = (name, detail) =>
    document.dispatchEvent(new CustomEvent(`tidings:${name}`, { detail }))

  client.on('*', (notification) => dispatch('notification', notification))
  for (const name of ['caught-up', 'gap', 'topics']) client.on(name, (event) => dispatch(name, event))
  client.subscribe(() => dispatch('status', client.status))
}
