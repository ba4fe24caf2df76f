// White space that comes with a value from a file or from $(...): taken off, or a usage error that names the variable;
// never INTERNAL.
import { writeFile } from 'node:fs/promises'
import { tidyEnvironment } from '../../cli/environment.ts'
import { adminToken } from '../../cli/wiring.ts'
import { type HttpServer, startHttpServer } from '../../ops/http.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, codeOf, suite } from '../support/suite.ts'
import { home } from './recording-io.ts'

const test = suite('cli: stray white space')
const TOKEN = 'a-token-0123456789abcdef'

/** An admin API that knows one token and answers `godwit enrol list`. */
async function admin(): Promise<{ url: string } & AsyncDisposable> {
  const routes = [{ method: 'GET' as const, path: '/v1/enrolments', handle: () => ({ body: { enrolments: [] } }) }]
  const server: HttpServer = await startHttpServer({ listen: { host: '127.0.0.1', port: 0 }, routes, token: TOKEN, log: silentLog })
  const { port } = server.address as { port: number }
  return { url: `http://127.0.0.1:${port}`, [Symbol.asyncDispose]: () => server.close() }
}

test('a token, an address and a path with a line break behind them work', async () => {
  await using gateway = await admin()
  await using at = await home()
  await writeFile(at.path('token'), `\n ${TOKEN} \r\n`, { mode: 0o600 })
  const env: Record<string, string>[] = [
    { GODWIT_TOKEN: `${TOKEN}\n` },
    { GODWIT_TOKEN: `\t${TOKEN}\r\n` },
    { GODWIT_TOKEN: '\n', GODWIT_TOKEN_FILE: `${at.path('token')}\n` },
  ]
  for (const more of env) {
    await using there = await home({ GODWIT_GATEWAY: ` ${gateway.url}\n`, GODWIT_LOG_LEVEL: 'warn\n', ...more })
    const { code, out, err } = await there.godwit('enrol', 'list')
    assert.is(code, 0, err)
    assert.match(out, 'no enrolments')
  }
})

test('a token with a line break or a space inside is a usage error that does not show it', async () => {
  await using gateway = await admin()
  for (const token of [`${TOKEN}\n${TOKEN}`, `${TOKEN} ${TOKEN}`, 'tökén']) {
    await using at = await home({ GODWIT_GATEWAY: gateway.url, GODWIT_TOKEN: token })
    const { code, err } = await at.godwit('enrol', 'list')
    assert.is(code, 2, err)
    assert.match(err, /error USAGE: .*(GODWIT_TOKEN|the token)/)
    assert.not.ok(err.includes(TOKEN))
  }
  await using at = await home({ GODWIT_GATEWAY: gateway.url })
  await writeFile(at.path('token'), `${TOKEN}\n${TOKEN}\n`, { mode: 0o600 })
  assert.match((await at.godwit('enrol', 'list', '--token-file', at.path('token'))).err, 'error USAGE: the token contains white space')
})

test('every variable of ours is tidied; others are left as they are', () => {
  const env = { GODWIT_HOME: ' /x\n', GODWIT_SOCKET: '\t', XDG_STATE_HOME: '/y ', PATH: ' /bin ' }
  assert.equal(tidyEnvironment(env), { GODWIT_HOME: '/x', GODWIT_SOCKET: undefined, XDG_STATE_HOME: '/y', PATH: ' /bin ' })
})

test('an empty or broken admin token file stops the gateway: it would let in whoever sends none', async () => {
  await using at = await home()
  for (const text of ['', '\n', `${TOKEN} ${TOKEN}`]) {
    await writeFile(at.path('admin.token'), text, { mode: 0o600 })
    assert.is(await codeOf(() => adminToken(at.path('admin.token'))), 'CONFIG_INVALID', JSON.stringify(text))
  }
  await writeFile(at.path('admin.token'), `${TOKEN}\n`, { mode: 0o600 })
  assert.is(await adminToken(at.path('admin.token')), TOKEN)
})

test.run()
