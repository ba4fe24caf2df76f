// The examples work as they stand: the commander moves a VM, configurations load, alerts name metrics that exist.
import { execFile } from 'node:child_process'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadGatewayConfig } from '../../cli/config.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import { eventually } from '../../ops/deadline.ts'
import { parseYaml } from '../../ops/yaml.ts'
import { home, recordingIo } from '../cli/recording-io.ts'
import { world } from '../gateway/fixture.ts'
import { actOut, embedded, PASSWORDS, stage } from '../gateway/fronts/mqtt/support.ts'
import { definedMetrics } from '../support/metrics.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('examples')
const folder = fileURLToPath(new URL('../../examples', import.meta.url))
const read = (name: string) => readFile(join(folder, name), 'utf8')

type Ended = { code: number; out: string; err: string }
const commander = (env: Record<string, string>, ...words: string[]): Promise<Ended> =>
  new Promise(resolve => {
    execFile(process.execPath, [join(folder, 'mqtt-commander.mjs'), ...words], { env, timeout: 25_000 }, (error, out, err) =>
      resolve({ code: error ? Number(error.code) : 0, out, err }),
    )
  })

test('the commander moves a VM by a command that the gateway accepts, and shows a rejection', async () => {
  await using at = await home()
  const made = await at.godwit('mqtt', 'keygen', '--name', 'noc-1', '--json')
  const { publicKey, key } = made.json() as { publicKey: string; key: string }
  const options = embedded()
  options.commandKeys = [{ name: 'noc-1', publicKey, actions: ['start'] }]
  await using w = await world({ mqtt: options })
  await eventually(() => w.gateway.mqtt?.up || undefined, { ms: 5_000, what: 'the broker' })
  const staged = await stage(w)
  const env = { MQTT_URL: w.gateway.mqtt?.url ?? '', MQTT_USER: 'noc', MQTT_PASSWORD: PASSWORDS.noc, MQTT_TENANT: 'acme' }
  const acting = actOut(staged)
  const moved = await commander(env, key, 'vm-1', 'b')
  assert.is(moved.code, 0, moved.err)
  const reply = JSON.parse(moved.out) as { status: string; handoffId: string }
  assert.equal([reply.status, reply.handoffId], ['accepted', await acting])
  await w.until(reply.handoffId, ({ state }) => state === 'DONE')
  const rejected = await commander(env, key, 'vm-1', 'nowhere')
  assert.is(rejected.code, 1)
  assert.match(rejected.err, 'SITE_UNKNOWN')
  const stranger = await commander({ ...env, MQTT_PASSWORD: 'wrong' }, key, 'vm-1', 'b')
  assert.is(stranger.code, 1)
  assert.match(stranger.err, 'the broker: ')
})

test('the policy is a configuration that a gateway takes', async () => {
  await using at = await home()
  const io = recordingIo({ env: at.env })
  const config = await loadGatewayConfig(io, { file: join(folder, 'policy.yaml') })
  assert.equal([config.policy?.name, config.policy?.regret.freeMs, config.policy?.vms['web-1']?.sloMs], ['regret', 5, 40])
  assert.is(config.mqtt.mode, 'embedded')
  const signed = (await read('policy.yaml')).replace(/^( *)# (?=measurementKeys:| {2}probe-1:)/gm, '$1')
  await writeFile(at.path('signed.yaml'), signed)
  const keys = (await loadGatewayConfig(io, { file: at.path('signed.yaml') })).mqtt.measurementKeys
  assert.equal(Object.keys(keys), ['probe-1'])
})

test('every specification of a VM is one', async () => {
  const names = (await readdir(folder)).filter(name => name.startsWith('vm-'))
  assert.ok(names.length >= 3)
  for (const name of names) assert.ok(parseSpec(await read(name)).memoryBytes > 0, name)
})

test('alerts of Prometheus name metrics that exist', async () => {
  const defined = [...definedMetrics().keys()]
  const rules = parseYaml(await read('prometheus-rules.yaml'), { what: 'rules' }).value as {
    groups: { rules: { alert: string; expr: string }[] }[]
  }
  const all = rules.groups.flatMap(group => group.rules)
  assert.ok(all.length >= 6)
  for (const { alert, expr } of all) {
    const named = [...expr.matchAll(/godwit_\w+|(?<=__name__=~")[^"]+/g)].map(([name]) => name)
    assert.ok(named.length > 0, alert)
    for (const name of named.filter(name => !name.startsWith('godwit_(') && !/^godwit_$/.test(name)))
      assert.ok(defined.includes(name), `${alert}: ${name}`)
    for (const pattern of named.filter(name => name.startsWith('godwit_(')))
      assert.is(defined.filter(name => new RegExp(`^${pattern}$`).test(name)).length, 2, `${alert}: ${pattern}`)
  }
  const scrape = parseYaml(await read('prometheus.yaml'), { what: 'scrape' }).value as { scrape_configs: { job_name: string }[] }
  assert.equal(
    scrape.scrape_configs.map(({ job_name }) => job_name),
    ['godwit-gateway', 'godwit-sites'],
  )
})

test.run()
