// Faults of databases, processes, versions and operators: what is lost or doubled starts nothing twice.
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFile, rename, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { run } from '../../cli/run.ts'
import { encodeRoot } from '../../crypto/certificate.ts'
import { eventually, sleep } from '../../ops/deadline.ts'
import type { GatewayStatus } from '../../wire/admin.ts'
import { recordingIo } from '../cli/recording-io.ts'
import { codeOfReply, connectAs, embedded, mosquitto, noMosquitto, topics } from '../gateway/fronts/mqtt/support.ts'
import type { LabOptions } from '../support/lab.ts'
import { assert, codeOf } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'
import { faultCase } from './support/case.ts'
import { putInPath } from './support/eyes.ts'
import { type GatewayProcess, gatewayProcess } from './support/gateway-process.ts'
import { oracles } from './support/oracles.ts'
import { openScene, type Scene, VM } from './support/scene.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const HOUR_MS = 3_600_000

/** A scene whose gateway is a process of its own. */
async function withGatewayProcess(): Promise<{ scene: Scene; gateway: GatewayProcess }> {
  let gateway: GatewayProcess | undefined
  const keeper: NonNullable<LabOptions['keeper']> = async place => {
    gateway = await gatewayProcess(place)
    return gateway
  }
  const scene = await openScene({ lab: { keeper } })
  return { scene, gateway: gateway! }
}

/** What `godwit status` says of the VM, once every site is back. */
async function placeOfVm({ lab }: Scene, ms: number): Promise<string[]> {
  const look = async () => {
    const status = await lab.api<GatewayStatus>('GET', '/v1/status').catch(() => undefined)
    if (!status || status.sites.filter(({ online }) => online).length < 2) return undefined
    const places = status.vms.filter(({ online, state }) => online && state === 'running').map(({ site }) => site)
    return places.length > 0 ? places : undefined
  }
  return await eventually(look, { ms, everyMs: 100, what: 'the VM in godwit status' })
}

faultCase(26, 'clocks that are an hour apart, and one that jumps two hours back between two lives of an agent: no effect', async () => {
  await using scene = await openScene({ a: { clockShiftMs: HOUR_MS }, b: { clockShiftMs: -HOUR_MS } })
  await scene.a.arm('source:RELINQUISHED', 'after', 'die')
  await scene.begin()
  await scene.a.died()
  scene.a.next = { clockShiftMs: -HOUR_MS }
  await scene.a.start()
  await scene.ended()
  await oracles(scene, 'C')
  await scene.begin({ to: 'a' })
  await scene.ended()
  await oracles(scene, 'C', { from: 'b', to: 'a', epoch: 2 })
})

faultCase(
  43,
  "the gateway's database is gone, then an old one comes back: it learns from the nodes within seconds, and starts nothing twice",
  async () => {
    const { scene, gateway } = await withGatewayProcess()
    await using _ = scene
    await gateway.stop()
    await gateway.keepDatabase()
    await gateway.start()
    await scene.begin()
    await scene.ended()
    await oracles(scene, 'C')
    for (const what of ['empty', 'kept'] as const) {
      await gateway.kill()
      await gateway.setDatabase(what)
      await gateway.start()
      // Of these the nodes take 15 s to find that a killed gateway no longer answers.
      assert.equal(await placeOfVm(scene, 40_000), ['b'], `${what} database`)
      await oracles(scene, 'C')
    }
    await scene.begin({ to: 'a' })
    await scene.ended()
    await oracles(scene, 'C', { from: 'b', to: 'a', epoch: 2 })
  },
)

faultCase(
  43,
  "the gateway's database is gone in the commit window: the two sites meet all the same, and the VM goes on at the target",
  async () => {
    const { scene, gateway } = await withGatewayProcess()
    await using _ = scene
    const point = await scene.a.arm('source:RELINQUISHED', 'after', 'hold')
    await scene.begin()
    await point.reached()
    await gateway.kill()
    await gateway.setDatabase('empty')
    await gateway.start()
    await point.release()
    await oracles(scene, 'C')
    assert.equal(await placeOfVm(scene, 15_000), ['b'])
  },
)

faultCase(
  46,
  "a force-start without proof is rejected; with the root's statement that the other host is off, the VM goes on with its memory",
  async () => {
    await using scene = await openScene({ a: { waits: { answerMs: 2_000 } } })
    const folder = await tempFolder()
    const point = await scene.a.arm('source:RELINQUISHED', 'after', 'hold')
    await scene.begin()
    await point.reached()
    await scene.b.powerLoss()
    await point.release()
    const env = { GODWIT_SOCKET: scene.a.socketPath, GODWIT_GATEWAY: scene.lab.target.url!, GODWIT_TOKEN_FILE: scene.lab.target.tokenFile }
    const godwit = async (...words: string[]) => {
      const io = recordingIo({ env })
      return { code: await run(words, io), out: io.stdout, err: io.stderr }
    }
    const doubts = async () =>
      JSON.parse((await godwit('recover', '--json')).out) as { why: unknown; asked: { times: number } | null; fencing: unknown }[]
    const isShown = async () => ((await doubts())[0]?.asked?.times ?? 0) > 1 || undefined
    await eventually(isShown, { ms: 60_000, everyMs: 500, what: 'the doubt, and who was asked' })
    await eventually(async () => ((await doubts())[0]?.why ? true : undefined), { ms: 30_000, everyMs: 500, what: 'MIGRATION_DOUBT' })
    assert.equal((await doubts())[0]?.fencing, { site: 'b', vm: VM, epoch: 2, for: 'a' })
    for (const force of [[], ['--force']]) {
      const refused = await godwit('vm', 'start', VM, ...force)
      assert.is(refused.code, force.length > 0 ? 3 : 4)
      assert.match(refused.err, force.length > 0 ? 'FENCING_REQUIRED' : 'MIGRATION_DOUBT')
    }
    await writeFile(join(folder.path, 'root.key'), encodeRoot(scene.lab.root), { mode: 0o600 })
    const fence = async (epoch: number) => {
      const path = join(folder.path, `${epoch}.fencing`)
      const words = ['--site', 'b', '--vm', VM, '--epoch', String(epoch), '--for', 'a', '--by', 'the test cut the power of b']
      assert.is((await godwit('root', 'fence', ...words, '--root', join(folder.path, 'root.key'), '--out', path)).code, 0)
      return await godwit('recover', VM, '--fencing', path)
    }
    assert.match((await fence(1)).err, 'FENCING_INVALID')
    assert.is(await scene.eyes.status('a'), 'postmigrate', 'nothing has started without proof')
    const { code, out, err } = await fence(2)
    assert.is(code, 0, err)
    assert.match(out, 'at epoch 3 and goes on with its memory')
    assert.match((await fence(2)).err, 'VM_STATE', 'a statement serves once')
    await scene.b.start()
    await oracles(scene, 'R')
    await folder[Symbol.asyncDispose]()
  },
  { ms: 180_000 },
)

faultCase(
  47,
  "the agent's database is damaged: it does not start, the VM goes on; without the database it starts no VM and gives none away",
  async () => {
    await using scene = await openScene()
    const store = join(scene.a.dir, 'state', 'store')
    await scene.a.kill()
    const manifest = join(store, (await readFile(join(store, 'CURRENT'), 'utf8')).trim())
    await writeFile(
      manifest,
      (await readFile(manifest)).map((byte, at) => (at > 8 && at % 3 === 0 ? byte ^ 0x55 : byte)),
    )
    const { code, text } = await agentOnce(scene)
    assert.is(code, 1)
    assert.match(text, /STORE_FAILED.*store is damaged/)
    assert.match(text, 'move the folder and start again')
    assert.is(await scene.eyes.status('a'), 'running')
    await rename(store, `${store}.damaged`)
    await scene.a.start()
    assert.is(await codeOf(() => scene.lab.begin({ vm: VM, to: 'b' })).catch(() => 'begun'), 'begun')
    await eventually(async () => ((await scene.eyes.status('b')) === 'gone' ? true : undefined), { ms: 20_000, what: 'nothing at b' })
    await oracles(scene, 'X', { epoch: 0 })
    await scene.a.api('POST', `/v1/vms/${VM}/stop`, { force: true })
    assert.is(await codeOf(() => scene.a.api('POST', `/v1/vms/${VM}/start`, {})), 'MIGRATION_DOUBT')
  },
)

faultCase(
  48,
  'a second agent for the same state folder, in the middle of a migration: it exits on the lock, and the migration goes on',
  async () => {
    await using scene = await openScene()
    await scene.midway()
    const { code, text } = await agentOnce(scene)
    assert.is(code, 2)
    assert.match(text, 'STORE_LOCKED')
    scene.lab.valve.open()
    await scene.ended()
    await oracles(scene, 'C')
  },
)

/** One more `godwit node` with the configuration of a, until it ends by itself. */
async function agentOnce(scene: Scene): Promise<{ code: number | null; text: string }> {
  const words = [join(ROOT, 'cli', 'main.ts'), 'node', '--config', join(scene.a.dir, 'node.yaml')]
  const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'pipe'] })
  let text = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', part => (text += part))
  const timer = setTimeout(() => child.kill('SIGKILL'), 20_000)
  const [code] = (await once(child, 'exit')) as [number | null]
  clearTimeout(timer)
  return { code, text }
}

faultCase(54, 'MQTT commands that are retained, stale or doubled: rejected, and one migration for one command', async () => {
  await using scene = await openScene({ lab: { gateway: { mqtt: embedded() } } })
  await using noc = await connectAs('noc', { url: scene.lab.gateway.mqtt!.url, version: 4, subscriptions: [`${topics.root}/reply/noc`] })
  const start = (fields: object = {}, more: object = {}) => noc.command('start', { vmId: VM, toSite: 'b', ...fields }, more)
  await eventually(async () => ((await scene.lab.api<GatewayStatus>('GET', '/v1/status')).vms.length > 0 ? true : undefined), {
    ms: 10_000,
    what: 'the VM known',
  })
  assert.is(codeOfReply(await start({}, { retain: true })), 'COMMAND_RETAINED')
  assert.is(codeOfReply(await start({ notAfter: new Date(Date.now() - 120_000).toISOString() })), 'COMMAND_LATE')
  assert.is(codeOfReply(await start({ expectedEpoch: 9 })), 'EPOCH_STALE')
  await oracles(scene, 'X')
  await scene.expectMove('b')
  const commandId = 'the-one-command-0001'
  const notAfter = new Date(Date.now() + 20_000).toISOString()
  const replies = [await start({ commandId, notAfter }), await start({ commandId, notAfter })]
  assert.equal(
    replies.map(reply => reply['status']),
    ['accepted', 'duplicate'],
  )
  const { migrations } = await scene.lab.api<GatewayStatus>('GET', '/v1/status')
  assert.is(migrations.length, 1)
  scene.follow(migrations[0]!.migrationId)
  await scene.ended()
  await start({ commandId, notAfter })
  await oracles(scene, 'C')
})

faultCase(
  55,
  'the broker is down while pages flow, back for a moment, down again at the commit: the migration does not notice, its status is told later',
  async () => {
    await using broker = await mosquitto()
    await using scene = await openScene({ lab: { gateway: { mqtt: broker.options('password') } } })
    const connected = () => eventually(() => scene.lab.gateway.mqtt!.up || undefined, { ms: 20_000, what: 'the broker connected' })
    await connected()
    const quiesced = await scene.a.arm('source:QUIESCED', 'after', 'hold')
    await scene.midway()
    await broker.stop()
    scene.lab.valve.open()
    await quiesced.reached()
    await broker.start()
    await connected()
    const relinquished = await scene.a.arm('source:RELINQUISHED', 'after', 'hold')
    await quiesced.release()
    await relinquished.reached()
    await broker.stop()
    await relinquished.release()
    await scene.ended()
    await oracles(scene, 'C')
    await broker.start()
    await connected()
    await using eye = await connectAs('eye', { url: `mqtt://127.0.0.1:${broker.port}`, version: 5, subscriptions: [`${topics.root}/#`] })
    await eye.wait<{ migrationId?: string }>(
      (topic, payload) => topic.includes('/handoff/') && JSON.stringify(payload).includes('completed'),
      'the end of the handoff',
    )
  },
  { skip: noMosquitto },
)

/**
 * The state of Godwit before its sites could resume a transfer and its pages travelled as differences: what was
 * released last.
 */
const PREVIOUS = 'c8ba749'
const noPrevious =
  spawnSync('git', ['-C', ROOT, 'cat-file', '-e', `${PREVIOUS}^{commit}`]).status === 0
    ? undefined
    : `commit ${PREVIOUS} is not in this checkout`

faultCase(
  49,
  'the target runs the version before: it moves, or ends cleanly at the source',
  async () => {
    await using folder = await tempFolder()
    const packed = spawn('sh', ['-c', `git -C "${ROOT}" archive ${PREVIOUS} | tar -x -C "${folder.path}"`], { stdio: 'ignore' })
    assert.is((await once(packed, 'exit'))[0], 0)
    await symlink(join(ROOT, 'node_modules'), join(folder.path, 'node_modules'))
    await putInPath()
    await using scene = await openScene({ b: { site: { isProcess: true, main: join(folder.path, 'cli', 'main.ts') } } })
    await scene.begin()
    const { state, outcome, error } = await scene.ended()
    console.log(`  with version ${PREVIOUS} at the target: ${state} ${outcome} ${error?.code ?? ''}`)
    await oracles(scene, outcome === 'completed' ? 'C' : 'A', { isUncompared: true })
  },
  { skip: noPrevious },
)

faultCase(
  37,
  'a disk of the VM is locked by another process at the target: it cannot be activated, refused, the source reclaims',
  async () => {
    const disk = Buffer.alloc(1024 * 1024, 7)
    const disks = [{ file: 'data.img', mode: 'readonly', format: 'raw' }]
    await using scene = await openScene({
      guest: { spec: { disks } },
      beforeStart: async ({ a, b }) => {
        for (const { imagesDir } of [a, b]) await writeFile(join(imagesDir, 'data.img'), disk)
      },
    })
    const path = join(scene.b.imagesDir, 'data.img')
    await scene.midway()
    const args = ['-nodefaults', '-display', 'none', '-S', '-machine', 'pc', '-drive', `file=${path},format=raw,if=virtio`]
    const other = spawn('qemu-system-x86_64', args, { stdio: 'ignore' })
    try {
      await sleep(1_500)
      assert.is(other.exitCode, null, 'the other QEMU holds the disk')
      scene.lab.valve.open()
      await scene.ended()
      await oracles(scene, 'R')
    } finally {
      other.kill('SIGKILL')
    }
  },
)
