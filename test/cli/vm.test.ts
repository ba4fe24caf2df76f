// godwit vm against a node's API on a unix socket that answers as told, console included.
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { PassThrough } from 'node:stream'
import { run } from '../../cli/run.ts'
import { eventually } from '../../ops/deadline.ts'
import { type Route, startHttpServer } from '../../ops/http.ts'
import { EXIT, GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, suite } from '../support/suite.ts'
import { recordingIo } from './recording-io.ts'

const test = suite('cli: vm')

const VM = { name: 'web-1', state: 'running', epoch: 3, memoryBytes: 402_653_184, vcpus: 1 }

async function node() {
  const folder = await mkdtemp(join(tmpdir(), 'godwit-vm-'))
  const calls: string[] = []
  const route = (method: Route['method'], path: string, body: unknown): Route => ({
    method,
    path,
    handle: async ({ params, json }) => {
      const sent = method === 'POST' ? (JSON.stringify(await json()) ?? '') : ''
      calls.push(`${method} ${path.replace(':name', params['name'] ?? '')} ${sent}`.trim())
      if (params['name'] === 'none') throw new GodwitError('VM_UNKNOWN', 'no VM none')
      return { body }
    },
  })
  const server = await startHttpServer({
    listen: { socketPath: join(folder, 'node.sock') },
    routes: [
      route('GET', '/v1/vms', { vms: [VM] }),
      route('POST', '/v1/vms', VM),
      route('GET', '/v1/vms/:name', { ...VM, spec: 'name: web-1\n' }),
      route('POST', '/v1/vms/:name/start', VM),
      route('POST', '/v1/vms/:name/stop', VM),
      route('POST', '/v1/vms/:name/wake', VM),
      route('GET', '/v1/vms/:name/display', { name: 'web-1', socket: '/vms/web-1/run/vnc.sock' }),
      route('DELETE', '/v1/vms/:name', { name: 'web-1', deleted: true }),
    ],
    upgrades: [
      {
        path: '/v1/vms/:name/console',
        handle: async () => socket => {
          socket.write('login: ')
          socket.on('data', bytes => (String(bytes) === 'end' ? socket.end() : socket.write(`<${bytes}>`)))
        },
      },
    ],
    log: silentLog,
  })
  const env = { GODWIT_SOCKET: join(folder, 'node.sock') }
  const godwit = async (...words: string[]) => {
    const io = recordingIo({ env })
    return { code: await run(['vm', ...words], io), out: io.stdout, err: io.stderr }
  }
  const dispose = async () => {
    await server.close()
    await rm(folder, { recursive: true, force: true })
  }
  return { folder, calls, env, godwit, [Symbol.asyncDispose]: dispose }
}

test('each command asks for what it says', async () => {
  await using at = await node()
  await writeFile(join(at.folder, 'web-1.yaml'), 'name: web-1\n')
  assert.is((await at.godwit('create', join(at.folder, 'web-1.yaml'), '--start')).out, 'created web-1 and started it\n')
  assert.is((await at.godwit('start', 'web-1')).out, 'started web-1\n')
  assert.is((await at.godwit('stop', 'web-1', '--force')).out, 'stopped web-1\n')
  assert.is((await at.godwit('stop', 'web-1')).out, 'stopped web-1\n')
  assert.is((await at.godwit('stop', 'web-1', '--timeout', '300')).out, 'stopped web-1\n')
  assert.is((await at.godwit('wake', 'web-1')).out, 'woke web-1\n')
  assert.is((await at.godwit('delete', 'web-1')).out, 'deleted web-1\n')
  assert.equal(at.calls, [
    'POST /v1/vms {"spec":"name: web-1\\n"}',
    'POST /v1/vms/web-1/start',
    'POST /v1/vms/web-1/start',
    'POST /v1/vms/web-1/stop {"force":true}',
    'POST /v1/vms/web-1/stop {"timeoutMs":120000}',
    'POST /v1/vms/web-1/stop {"timeoutMs":300000}',
    'POST /v1/vms/web-1/wake',
    'DELETE /v1/vms/web-1',
  ])
})

test('a stop that is told how long to wait takes whole seconds, and no --force beside them', async () => {
  await using at = await node()
  for (const words of [
    ['--timeout', '0'],
    ['--timeout', '1.5'],
    ['--timeout', 'soon'],
    ['--timeout', '5', '--force'],
  ])
    assert.is((await at.godwit('stop', 'web-1', ...words)).code, EXIT.usage, words.join(' '))
  assert.equal(at.calls, [])
})

test('list and show, for people and for programs', async () => {
  await using at = await node()
  assert.is((await at.godwit('list')).out, 'VM     STATE    MEMORY   VCPUS  EPOCH\nweb-1  running  384 MiB  1      3\n')
  assert.equal(JSON.parse((await at.godwit('list', '--json')).out), [VM])
  assert.match((await at.godwit('show', 'web-1')).out, /^name: +web-1\nstate: +running\n[\s\S]*\n\nname: web-1\n$/)
  assert.is(JSON.parse((await at.godwit('show', 'web-1', '--json')).out).spec, 'name: web-1\n')
})

test('display shows the socket and how to connect, or is JSON', async () => {
  await using at = await node()
  assert.match((await at.godwit('display', 'web-1')).out, /^VNC socket: +\/vms\/web-1\/run\/vnc.sock\n[\s\S]*vncviewer/)
  assert.equal(JSON.parse((await at.godwit('display', 'web-1', '--json')).out), { name: 'web-1', socket: '/vms/web-1/run/vnc.sock' })
})

test('an unknown VM, an absent file and an absent node have their exit codes', async () => {
  await using at = await node()
  const unknown = await at.godwit('show', 'none')
  assert.equal([unknown.code, unknown.err.split('\n')[0]], [EXIT.refused, 'error VM_UNKNOWN: no VM none'])
  assert.is((await at.godwit('create', '/nonexistent/spec.yaml')).code, EXIT.usage)
  assert.is((await at.godwit('list', '--socket', join(at.folder, 'none.sock'))).code, EXIT.unreachable)
})

test('the console passes bytes both ways and ends with the guest', async () => {
  await using at = await node()
  const io = recordingIo({ env: at.env })
  let seen = ''
  ;(io.output as PassThrough).on('data', bytes => {
    seen += bytes
  })
  const ended = run(['vm', 'console', 'web-1'], io)
  await eventually(() => seen.includes('login: ') || undefined, { ms: 5000, what: 'the greeting' })
  ;(io.input as PassThrough).write('root')
  await eventually(() => seen.includes('<root>') || undefined, { ms: 5000, what: 'the echo' })
  ;(io.input as PassThrough).write('end')
  assert.is(await ended, EXIT.ok)
})

test('on a terminal Ctrl-] exits, and the input before it still goes to the guest', async () => {
  await using at = await node()
  const io = recordingIo({ env: at.env })
  const modes: boolean[] = []
  Object.assign(io.input, { isTTY: true, setRawMode: (isRaw: boolean) => modes.push(isRaw) })
  const ended = run(['vm', 'console', 'web-1'], io)
  await eventually(() => modes.length > 0 || undefined, { ms: 5000, what: 'raw mode' })
  ;(io.input as PassThrough).write('x\u001dy')
  assert.is(await ended, EXIT.ok)
  assert.equal(modes, [true, false])
  assert.match(io.stderr, /Ctrl-\] exits\n\ndisconnected\n/)
})

test.run()
