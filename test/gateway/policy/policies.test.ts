// Every policy through a live gateway: what users measure comes by MQTT, what is decided becomes a migration at the
// nodes.
import { PolicyConfig } from '../../../gateway/policy/config.ts'
import type { LiveExplanation } from '../../../gateway/policy/live.ts'
import { eventually } from '../../../ops/deadline.ts'
import { assert, suite } from '../../support/suite.ts'
import { vm, world } from '../fixture.ts'
import { connectAs, embedded, topics } from '../fronts/mqtt/support.ts'

const test = suite('gateway: policies', { ms: 60_000 })

const QUICK = {
  smoothing: 0.5,
  regret: { triggerMs: 2_000, residenceMs: 1_000 },
  latency: { triggerMs: 1_000 },
  links: [{ from: 'a', to: 'b', rttMs: 24, bandwidthBytesPerSecond: 1e8 }],
}
/** Long enough for every policy that moves at all. */
const SECONDS = 8

/**
 * A VM at a whose user measures 40 ms to a and 16 ms to b for some seconds. Gives whether it was sent to b, and why (or
 * why not).
 */
async function drive(given: object, more: { vm?: object; pin?: boolean; command?: boolean } = {}) {
  await using w = await world({ mqtt: embedded(), policy: PolicyConfig.parse({ ...QUICK, ...given }) })
  const a = await w.node('a', { vms: [vm('vm-1', { policy: { sloMs: 20, ...more.vm } })] })
  await w.node('b')
  await eventually(() => w.gateway.mqtt?.up || undefined, { ms: 5_000, what: 'the broker' })
  if (more.pin) await w.api('PUT', '/v1/vms/vm-1/pin', { pinned: true })
  await using telco = await connectAs('telco', { url: w.gateway.mqtt?.url ?? '', version: 4 })
  for (let second = 0, seq = 0; second < SECONDS && a.started.length === 0; second++) {
    for (const [targetSite, rttMs] of [
      ['a', 40],
      ['b', 16],
    ] as const)
      await telco.publish(topics.build('latency', { ueKey: 'u1' }), { seq: ++seq, vmId: 'vm-1', targetSite, rttMs }, { qos: 0 })
    await new Promise(resolve => setTimeout(resolve, 1_000))
  }
  const why = await w.api<LiveExplanation>('GET', '/v1/vms/vm-1/explain')
  if (more.command) {
    await w.api('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
    await eventually(() => a.started.length || undefined, { ms: 5_000, what: 'the move by command' })
  }
  return { to: a.started[0]?.plan.target, policy: why.policy, gate: why.gate, lastMove: why.lastMove?.to }
}

test('regret, latency, never, manual, a pin, an SLO of the VM and a hard limit each do what they say', async () => {
  const patient = { regret: { triggerMs: 600_000, residenceMs: 1_000 } }
  const [regret, latency, never, manual, pinned, content, hard, notHard] = await Promise.all([
    drive({ name: 'regret' }),
    drive({ name: 'latency' }),
    drive({ name: 'never' }),
    drive({ name: 'manual' }, { command: true }),
    drive({ name: 'regret' }, { pin: true }),
    drive({ name: 'never' }, { vm: { policy: 'latency', sloMs: 100 } }),
    drive({ name: 'regret', ...patient }, { vm: { hardLimitMs: 30 } }),
    drive({ name: 'regret', ...patient }),
  ])
  assert.equal([regret.to, regret.policy, regret.lastMove], ['b', 'regret', 'b'])
  assert.equal([latency.to, latency.policy, latency.lastMove], ['b', 'latency', 'b'])
  assert.equal([never.to, never.policy, never.gate], [undefined, 'never', 'policy'])
  assert.equal([manual.to, manual.gate, manual.lastMove], ['b', 'policy', undefined], 'by command only')
  assert.equal([pinned.to, pinned.gate], [undefined, 'pinned'])
  assert.equal([content.to, content.policy, content.gate], [undefined, 'latency', 'trigger'])
  assert.equal([hard.to, hard.lastMove], ['b', 'b'], 'TTT is not waited for')
  assert.equal([notHard.to, notHard.gate], [undefined, 'trigger'])
})

test.run()
