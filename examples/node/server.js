// An application with a session login and a table of notifications. Its last part is about Tidings. Sending takes
// nothing but the INSERT: `tidings adopt` has created a trigger.

import express from 'express'
import session from 'express-session'
import jwt from 'jsonwebtoken'
import { randomBytes } from 'node:crypto'
import { promisify } from 'node:util'
import pg from 'pg'

const { DATABASE_URL, NODE_ENV, PORT = 3000, STREAM_URL = '/stream', TIDINGS_JWT_SECRET } = process.env
const isProduction = NODE_ENV === 'production'

const db = new pg.Pool({ connectionString: DATABASE_URL })
const app = express()

app.use(express.static('public'))
app.use('/tidings-client', express.static('node_modules/tidings-client/dist'))
app.use(express.urlencoded())
app.use(
  session({
    secret: randomBytes(32).toString('hex'), // sessions are kept in memory, so they end with this process anyway
    resave: false,
    saveUninitialized: false,
    // Other sites can't send a form with it.
    cookie: { sameSite: 'lax', secure: isProduction },
  }),
)

function signedIn(request, response, next) {
  if (request.session.user) next()
  else response.sendStatus(401)
}

app.post('/login', async (request, response) => {
  const { name, password } = request.body
  const { rows } = await db.query(
    'select id, name from users where name = $1 and password = crypt($2, password)',
    [name, password],
  )
  if (!rows.length) return response.redirect(303, '/login.html')
  // A session of its own: another person may know the previous session's id.
  await promisify(request.session.regenerate.bind(request.session))()
  request.session.user = rows[0]
  response.redirect(303, '/')
})

app.get('/notifications', signedIn, async (request, response) => {
  const { rows } = await db.query(
    'select id, text from notification where user_id = $1 order by id desc limit 20',
    [request.session.user.id],
  )
  response.json(rows)
})

app.post('/notifications', signedIn, async (request, response) => {
  const { to, text } = request.body
  const { rowCount } = await db.query(
    'insert into notification (user_id, text) select id, $2 from users where name = $1',
    [to, text],
  )
  if (rowCount) response.redirect(303, '/')
  else response.status(422).send(`There is no user ${JSON.stringify(to)}.`)
})

// --- Tidings -------------------------------------------------------------------------------

const tokenCookie = { path: '/stream', httpOnly: true, sameSite: 'strict', secure: isProduction }

// Who is logged in, and a cookie with which this user's pages can open the stream for an hour.
app.post('/stream-cookie', signedIn, (request, response) => {
  const { user } = request.session
  const { user: expected } = request.query
  // The browser has one cookie for all its tabs. One that was opened as another user must not use it.
  if (expected && expected !== user.id) return response.sendStatus(401)
  const token = jwt.sign({}, TIDINGS_JWT_SECRET, { subject: user.id, expiresIn: '1h' })
  response.cookie('tidings_token', token, { ...tokenCookie, maxAge: 3_600_000 })
  response.json({ ...user, streamUrl: STREAM_URL })
})

app.post('/logout', signedIn, async (request, response) => {
  const { id } = request.session.user
  await promisify(request.session.destroy.bind(request.session))()
  response.clearCookie('tidings_token', tokenCookie)
  await db.query('select tidings.disconnect_user($1)', [id]) // ends the user's streams
  response.redirect(303, '/login.html')
})

const server = app.listen(PORT, 'localhost', (error) => {
  if (error) throw error
  console.log(`http://localhost:${server.address().port}: log in as alice or bob; the password is the name`)
})
