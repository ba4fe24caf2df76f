// godwit mqtt against a gateway with an embedded broker: as an integrator would use it.
import { readFile, writeFile } from 'node:fs/promises'
import type { Measurement } from '../../gateway/handoff/measurements.ts'
import { MEASURED } from '../../mqtt/topics.ts'
import { eventually } from '../../ops/deadline.ts'
import { vm, world } from '../gateway/fixture.ts'
import { actOut, embedded, mosquitto, noMosquitto, PASSWORDS, stage } from '../gateway/fronts/mqtt/support.ts'
import { assert, suite } from '../support/suite.ts'
import { home } from './recording-io.ts'

const test = suite('cli: mqtt')

/** A home with a key and the password of `noc`, and a gateway that knows both. */
async function integrator(how: 'embedded' | 'mosquitto' = 'embedded') {
  const at = await home()
  const made = await at.godwit('mqtt', 'keygen', '--name', 'noc-1', '--json')
  const { publicKey, key } = made.json() as { publicKey: string; key: string }
  await writeFile(at.path('password'), `${PASSWORDS.noc}\n`, { mode: 0o600 })
  await writeFile(at.path('wrong'), 'wrong\n', { mode: 0o600 })
  const broker = how === 'mosquitto' ? await mosquitto() : undefined
  const options = broker?.options('tls') ?? embedded()
  options.commandKeys = [{ name: 'noc-1', publicKey, actions: ['start', 'cancel', 'pin', 'prestage'] }]
  const w = await world({ mqtt: options })
  await eventually(() => w.gateway.mqtt?.up || undefined, { ms: 5_000, what: 'the broker' })
  const url = broker ? `mqtt://127.0.0.1:${broker.port}` : (w.gateway.mqtt?.url ?? '')
  const flags = ['--broker', url, '--tenant', 'acme', '--user', 'noc', '--password-file', at.path('password')]
  const mqtt = (...words: string[]) => at.godwit('mqtt', ...words, ...flags)
  const command = (...words: string[]) => mqtt('command', ...words, '--key', key)
  return {
    at,
    w,
    key,
    mqtt,
    command,
    async [Symbol.asyncDispose]() {
      await w[Symbol.asyncDispose]()
      await broker?.[Symbol.asyncDispose]()
      await at[Symbol.asyncDispose]()
    },
  }
}

test('a key is made once, and shows what the gateway needs to know of it', async () => {
  await using at = await home()
  const first = await at.godwit('mqtt', 'keygen', '--name', 'noc-1')
  assert.is(first.code, 0)
  assert.match(first.out, /gateway\.yaml: +mqtt: \{ commandKeys: \{ noc-1: \{ publicKey: [A-Za-z0-9+/]{43}=, actions: /)
  assert.is((await at.godwit('mqtt', 'keygen', '--name', 'noc-1')).code, 2)
  assert.is((await at.godwit('mqtt', 'keygen', '--name', 'noc-1', '--force')).code, 0)
  assert.is((await at.godwit('mqtt', 'keygen', '--name', 'NOC')).code, 2)
})

test('a measurement is checked, dated, signed and sent; a key of commands does not sign one', async () => {
  await using at = await home()
  const made = await at.godwit('mqtt', 'keygen', '--for', 'measurement', '--name', 'probe')
  assert.match(made.out, /gateway\.yaml: +mqtt: \{ measurementKeys: \{ probe: \{ publicKey: [A-Za-z0-9+/]{43}=, kinds: \[latency, /)
  const key = at.path('config', 'measurement-probe.key')
  const { publicKey } = JSON.parse(await readFile(key, 'utf8')) as { publicKey: string }
  await at.godwit('mqtt', 'keygen', '--name', 'noc', '--out', at.path('noc.key'))
  await writeFile(at.path('password'), `${PASSWORDS.telco}\n`, { mode: 0o600 })
  const measured: Measurement[] = []
  const mqtt = { ...embedded(), measurementKeys: [{ name: 'probe', publicKey, kinds: MEASURED }] }
  await using w = await world({ mqtt, onMeasurement: one => measured.push(one) })
  await w.node('a', { vms: [vm('vm-1')] })
  await w.node('b')
  await eventually(() => w.gateway.mqtt?.up || undefined, { ms: 5_000, what: 'the broker' })
  const flags = ['--broker', w.gateway.mqtt?.url ?? '', '--tenant', 'acme', '--user', 'telco', '--password-file', at.path('password')]
  const measure = (...words: string[]) => at.godwit('mqtt', 'measure', ...words, ...flags)
  const latency = '{"seq":1,"vmId":"vm-1","targetSite":"a","rttMs":12.5}'
  const sent = await measure('ue/u1/meas/latency', latency, '--key', key)
  assert.equal([sent.code, sent.err], [0, ''])
  assert.is((await measure('site/a/link/b', '{"rttMs":24}')).code, 0)
  await eventually(() => measured.length === 2 || undefined, { ms: 5_000, what: 'two measurements' })
  assert.equal(
    measured.map(({ kind, signedBy }) => [kind, signedBy]),
    [
      ['latency', 'probe'],
      ['link', undefined],
    ],
  )
  assert.match(
    (await measure('ue/u1/meas/latency', latency, '--key', at.path('noc.key'))).err,
    /^error CONFIG_INVALID: .*: not a key for measurements/,
  )
  assert.match((await measure('ue/u1/meas/latency', '{"seq":1}')).err, /^error USAGE: PAYLOAD: vmId: /)
  assert.match((await measure('vm/vm-1/placement', '{}')).err, /^error USAGE: 'vm\/vm-1\/placement' is not a measurement topic/)
})

test('start, cancel and pin by command; a refusal ends with the exit code of its code', async () => {
  await using i = await integrator()
  const s = await stage(i.w)
  const acting = actOut(s)
  const started = await i.command('start', 'vm-1', '--to', 'b', '--downtime', '250ms', '--json')
  assert.is(started.code, 0, started.err)
  const { status, handoffId } = started.json() as { status: string; handoffId: string }
  assert.equal([status, handoffId], ['accepted', await acting])
  assert.is(s.a.started[0]?.plan.downtimeMs, 250)
  await i.w.until(handoffId, ({ state }) => state === 'DONE')

  const pinned = await i.command('pin', 'vm-1', '--epoch', '2')
  assert.equal([pinned.code, pinned.out], [0, 'status: accepted\n'], pinned.err)
  const refused = await i.command('start', 'vm-1', '--to', 'a', '--epoch', '2')
  assert.is(refused.code, 3)
  assert.match(refused.err, /^error VM_PINNED: .*\n {2}hint: unpin/)
  assert.is((await i.command('pin', 'vm-1', '--off', '--epoch', '2')).code, 0)
  assert.match((await i.command('cancel', 'vm-1', '--epoch', '2')).err, /^error MIGRATION_UNKNOWN/)
  assert.match((await i.command('prestage', 'vm-1', '--to', 'a', '--epoch', '2')).out, /^status: +accepted\nhandoffId: [0-9a-f]{32}\n$/)
  assert.match((await i.command('start', 'vm-1', '--to', 'a', '--epoch', '1')).err, /^error EPOCH_STALE/)
})

test('what cannot be is said at once: action, key, broker, password, VM', async () => {
  await using i = await integrator()
  assert.match((await i.command('fly', 'vm-1')).err, /^error USAGE: 'fly': expected one of start/)
  assert.match((await i.command('start', 'vm-1')).err, /^error USAGE: --to is missing/)
  await writeFile(i.at.path('nokey'), '{}', { mode: 0o600 })
  assert.match((await i.mqtt('command', 'cancel', 'vm-1', '--key', i.at.path('nokey'))).err, /^error CONFIG_INVALID/)
  const away = await i.at.godwit('mqtt', 'tail', '--broker', 'mqtt://127.0.0.1:1')
  assert.is(away.code, 5)
  assert.match(away.err, /^error BROKER_UNREACHABLE/)
  const wrong = await i.at.godwit(
    'mqtt',
    'tail',
    '--broker',
    i.w.gateway.mqtt?.url ?? '',
    '--user',
    'noc',
    '--password-file',
    i.at.path('wrong'),
  )
  assert.is(wrong.code, 6)
  assert.match(wrong.err, /^error AUTH_FAILED/)
})

test('tail prints one line of JSON for each message', async () => {
  await using i = await integrator()
  await stage(i.w)
  const { code, out } = await i.mqtt('tail', '--topic', 'vm/+/placement', '--count', '1')
  assert.is(code, 0)
  const line = JSON.parse(out) as { topic: string; payload: { siteId: string } }
  assert.equal([line.topic, line.payload.siteId], ['godwit/v1/acme/vm/vm-1/placement', 'a'])
})

test(
  'the same through a foreign broker, MQTT 5',
  async () => {
    await using i = await integrator('mosquitto')
    const s = await stage(i.w)
    await eventually(async () => ((await i.command('cancel', 'vm-1')).err.startsWith('error MIGRATION_UNKNOWN') ? true : undefined), {
      ms: 15_000,
      what: 'a placement, and a reply',
    })
    const acting = actOut(s)
    const { code, err } = await i.command('start', 'vm-1', '--to', 'b')
    assert.is(code, 0, err)
    await acting
    const shown = await i.mqtt('tail', '--topic', 'handoff/+/status', '--count', '1')
    assert.is(JSON.parse(shown.out).payload.vmId, 'vm-1')
  },
  { skip: noMosquitto },
)

test.run()
