// godwit recover against a node's API that answers as told, and against the statement that godwit root fence has
// written.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { renderDoubts } from '../../cli/commands/recover.ts'
import { run } from '../../cli/run.ts'
import { createRoot, encodeRoot } from '../../crypto/certificate.ts'
import { verifyFencing } from '../../crypto/fencing.ts'
import { loadSodium } from '../../crypto/sodium.ts'
import type { Doubt } from '../../edge-node/doubts.ts'
import { startHttpServer } from '../../ops/http.ts'
import { EXIT, GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, suite } from '../support/suite.ts'
import { recordingIo } from './recording-io.ts'

const test = suite('cli: recover')
await loadSodium()

const NOW = Date.parse('2026-11-21T12:00:00Z')
const doubt: Doubt = {
  vm: 'web-1',
  state: 'paused',
  epoch: 3,
  why: { code: 'MIGRATION_DOUBT', message: 'handed over, and the other site has not confirmed it' },
  record: { migrationId: 'c0ffee00'.repeat(4), state: 'RELINQUISHED', epoch: 4, at: NOW - 60_000, target: 'b' },
  asked: { times: 9, firstAt: NOW - 59_000, lastAt: NOW - 4_000, said: { code: 'STREAM_RESET', message: 'SITE_OFFLINE' } },
  fencing: { site: 'b', vm: 'web-1', epoch: 4, for: 'a' },
  next: ['Bring b back.', 'Only if it cannot come back: fence it.'],
}

async function node() {
  const folder = await mkdtemp(join(tmpdir(), 'godwit-recover-'))
  const asked: unknown[] = []
  const vm = { name: 'web-1', state: 'stopped', epoch: 5 }
  const server = await startHttpServer({
    listen: { socketPath: join(folder, 'node.sock') },
    routes: [
      { method: 'GET', path: '/v1/doubts', handle: () => ({ body: { doubts: [doubt] } }) },
      {
        method: 'POST',
        path: '/v1/vms/:name/:action',
        handle: async ({ params, json }) => {
          asked.push([params['name'], params['action'], await json()])
          if (params['name'] !== 'web-1') throw new GodwitError('FENCING_INVALID', 'about another VM')
          return { body: params['action'] === 'start' ? { ...vm, state: 'running' } : vm }
        },
      },
    ],
    log: silentLog,
  })
  const root = createRoot()
  await writeFile(join(folder, 'root.key'), encodeRoot(root), { mode: 0o600 })
  const godwit = async (...words: string[]) => {
    const io = recordingIo({ env: { GODWIT_SOCKET: join(folder, 'node.sock'), GODWIT_GATEWAY: 'http://127.0.0.1:9' } })
    return { code: await run(words, io), out: io.stdout, err: io.stderr }
  }
  const fence = (...more: string[]) => {
    const fixed = ['--vm', 'web-1', '--epoch', '4', '--for', 'a', '--by', 'Ada pulled the plug']
    return godwit('root', 'fence', ...fixed, '--root', join(folder, 'root.key'), '--out', join(folder, 'statement'), ...more)
  }
  const dispose = async () => {
    await server.close()
    await rm(folder, { recursive: true, force: true })
  }
  return { folder, root, asked, godwit, fence, [Symbol.asyncDispose]: dispose }
}

test('what is in doubt is shown with the reason, the last record, the asking, and what to do', () => {
  const copies = [{ site: 'b', online: false, state: 'incoming', epoch: 0 }]
  assert.is(
    renderDoubts([{ ...doubt, sites: copies }], NOW),
    [
      'VM:           web-1 (paused, epoch 3 at this site)',
      'why:          MIGRATION_DOUBT: handed over, and the other site has not confirmed it',
      `last record:  RELINQUISHED, epoch 4, to b, 1 min 00 s ago (migration ${'c0ffee00'.repeat(4)})`,
      'asked:        b, 9 times in 55.0 s, last 4.0 s ago: STREAM_RESET SITE_OFFLINE',
      'gateway sees: b offline, epoch 0',
      'what to do:',
      '  1. Bring b back.',
      '  2. Only if it cannot come back: fence it.',
      '',
    ].join('\n'),
  )
  assert.is(renderDoubts([], NOW), 'no VM is in doubt\n')
})

test('--json gives all of it, also where no gateway can be asked', async () => {
  await using at = await node()
  const { code, out } = await at.godwit('recover', '--json')
  assert.is(code, EXIT.ok)
  assert.equal(JSON.parse(out), [{ ...doubt, sites: null }])
  assert.equal(JSON.parse((await at.godwit('recover', 'other', '--json')).out), [])
})

test('a statement of godwit root fence is handed to the node, and a VM whose QEMU is gone is started', async () => {
  await using at = await node()
  assert.is((await at.fence('--site', 'b')).code, EXIT.ok)
  const file = join(at.folder, 'statement')
  const { code, out } = await at.godwit('recover', 'web-1', '--fencing', file)
  assert.is(code, EXIT.ok)
  assert.match(out, 'at epoch 5; the VM was booted again without its memory')
  const [[, action, body], [, then]] = at.asked as [[string, string, { fencing: string }], [string, string]]
  assert.equal([action, then], ['reclaim', 'start'])
  const said = verifyFencing(Buffer.from(body.fencing, 'base64'), { rootPublic: at.root.signPublic })
  assert.equal([said.site, said.vm, said.epoch, said.for, said.by], ['b', 'web-1', 4, 'a', 'Ada pulled the plug'])
  const shown = await at.godwit('root', 'show', file)
  assert.match(shown.out, 'fencing statement')
})

test('a wrong statement, a file that is none, a statement without a VM, and one that fences nobody are refused', async () => {
  await using at = await node()
  assert.is((await at.fence('--site', 'b')).code, EXIT.ok)
  const file = join(at.folder, 'statement')
  const denied = await at.godwit('recover', 'web-2', '--fencing', file)
  assert.is(denied.code, EXIT.denied)
  assert.match(denied.err, 'FENCING_INVALID')
  await writeFile(join(at.folder, 'noise'), (await readFile(file, 'utf8')).replaceAll('FENCING STATEMENT', 'CERTIFICATE'))
  assert.is((await at.godwit('recover', 'web-1', '--fencing', join(at.folder, 'noise'))).code, EXIT.usage)
  assert.is((await at.godwit('recover', '--fencing', file)).code, EXIT.usage)
  assert.is((await at.fence('--site', 'a')).code, EXIT.usage)
})

test.run()
