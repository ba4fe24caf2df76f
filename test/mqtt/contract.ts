// The contract of the control plane, for every broker: what integrators are promised. Not a test itself: aedes.test.ts
// and mosquitto.test.ts run it.

import { signCommand } from '../../crypto/command-keys.ts'
import type { MqttOptions } from '../../gateway/fronts/mqtt/start.ts'
import type { Measurement } from '../../gateway/handoff/measurements.ts'
import { eventually } from '../../ops/deadline.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'
import { vm, type World, world } from '../gateway/fixture.ts'
import {
  actOut,
  codeOfReply,
  connectAs,
  counted,
  draft,
  nocKey,
  PHASE_ORDER,
  readerKey,
  stage,
  type TestClient,
  topics,
} from '../gateway/fronts/mqtt/support.ts'
import { assert, type Suite } from '../support/suite.ts'
import { createChecker } from './asyncapi-checker.ts'

type ContractBroker = {
  /** For the gateway. */
  options: MqttOptions
  /** For integrators; the embedded broker is known once the gateway runs. */
  url(w: World): string
  version: 4 | 5
} & AsyncDisposable

type Status = {
  handoffId: string
  phase: string
  seq: number
  standards: { acr: string[]; mec021: Record<string, string> }
  problem?: { code: string }
}
type Placement = { siteId: string; epoch: number; policy: { pinned: boolean }; ueKeys: string[] }
type SiteState = { online: boolean; bdSeq: number; capacity?: { vcpu: number }; endpoints?: { pubKey: string } }

const ALL = `${topics.root}/#`
const MS = 6_000
const until = (probe: () => unknown, what: string) => eventually(async () => (await probe()) || undefined, { ms: MS, everyMs: 10, what })

type Test = { w: World; broker: ContractBroker; measured: Measurement[]; as: As }
type It = (title: string, body: (o: Test) => Promise<void>) => void

export function contract(test: Suite, open: () => Promise<ContractBroker>, skip: string | undefined): void {
  const it: It = (title, body) =>
    test(
      title,
      async () => {
        await using broker = await open()
        const measured: Measurement[] = []
        await using w = await world({ mqtt: broker.options, onMeasurement: one => measured.push(one) })
        await until(() => w.gateway.mqtt?.up, 'the gateway at its broker')
        const as: As = (who, subscriptions = [ALL]) => connectAs(who, { url: broker.url(w), version: broker.version, subscriptions })
        await body({ w, broker, measured, as })
      },
      { skip },
    )
  for (const part of PARTS) part(it)
}

function showsState(it: It): void {
  it('shows gateway, sites and VMs as retained messages; a site that goes dies with the number of its birth', async ({ w, as }) => {
    const { a } = await stage(w)
    await using eye = await as('eye')
    const born = await eye.wait<SiteState>((topic, site) => topic.endsWith('site/a/state') && site.online, 'birth of a')
    assert.is(born.capacity?.vcpu, 2)
    assert.is(born.endpoints?.pubKey.length, 44)
    await eye.wait((topic, gateway) => topic.endsWith('gateway/gw/state') && gateway['online'] === true, 'birth of the gateway')
    const place = await eye.wait<Placement>(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    assert.equal([place.siteId, place.epoch, place.policy], ['a', 1, { pinned: false }])
    await a.link.close()
    const died = await eye.wait<SiteState>((topic, site) => topic.endsWith('site/a/state') && !site.online, 'death of a')
    assert.is(died.bdSeq, born.bdSeq)
    await using late = await as('eye')
    const stands = await late.wait<SiteState>(topic => topic.endsWith('site/a/state'), 'what stands of a')
    assert.is(stands.online, false, 'it is retained')
  })
}

function carriesOut(it: It): void {
  it('carries a signed command out, and tells every step in the words of the standards', async ({ w, as }) => {
    const s = await stage(w)
    await using noc = await as('noc')
    await using eye = await as('eye')
    await noc.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    const acting = actOut(s, phase =>
      eye
        .wait<Status>(
          (topic, status) => topic.endsWith('/status') && status.phase === PHASE_ORDER[PHASE_ORDER.indexOf(phase) - 1],
          `before ${phase}`,
        )
        .then(() => {})
        .catch(() => {}),
    )
    const reply = await noc.command('start', { toSite: 'b', fromSite: 'a', traceparent, constraints: { maxDowntimeMs: 250 } })
    assert.is(reply['status'], 'accepted', JSON.stringify(reply))
    const handoffId = await acting
    assert.is(reply['handoffId'], handoffId)
    assert.is(s.a.started[0]?.plan.downtimeMs, 250)
    const result = await eye.wait<{ data: Record<string, unknown>; type: string }>(topic => topic.endsWith(`${handoffId}/result`), 'result')
    assert.equal([result.type, result.data['downtimeMs'], result.data['bytes'], result.data['to']], ['handoff.completed.v1', 33, 500, 'b'])
    await eye.wait<Placement>(
      (topic, place) => topic.endsWith('vm/vm-1/placement') && place.siteId === 'b' && place.epoch === 2,
      'new placement',
    )
    const statuses = eye.of('status').map(({ text }) => JSON.parse(text) as Status)
    assert.equal(
      statuses.map(({ phase }) => phase),
      [...PHASE_ORDER],
    )
    assert.equal(
      statuses.map(({ standards }) => standards.acr[0]),
      ['ACR_MONITORING', 'initiate', 'UP_PATH_CHG', 'ACT_STOP'],
    )
    assert.is(statuses.at(-1)?.standards.mec021['mobilityStatus'], 'INTERHOST_MOVEOUT_COMPLETED')
    assert.equal([...new Set(statuses.map(status => (status as { traceparent?: string }).traceparent))], [traceparent])
    assert.ok(eye.of('progress').length >= 1, 'progress')
    await using late = await as('noc')
    const stands = await late.wait<Status>(topic => topic.endsWith(`${handoffId}/status`), 'what stands')
    assert.is(stands.phase, 'completed')
  })
}

function matchesTheDocument(it: It): void {
  it('what goes over the wire is what the AsyncAPI document says', async ({ w, as }) => {
    const checker = await createChecker()
    const s = await stage(w)
    await using noc = await as('noc')
    await using eye = await as('eye')
    await noc.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    const acting = actOut(s)
    await noc.command('start', { toSite: 'b' })
    await noc.command('cancel', { vmId: 'nobody' })
    await acting
    await eye.wait(topic => topic.endsWith('/result'), 'result')
    await eye.wait(topic => topic.endsWith('/problem') || topic.endsWith('/result'), 'a problem')
    const own = signCommand(nocKey, topics, 'pin', draft({ pinned: true }))
    checker.check(topics.build('pin'), JSON.stringify(own))
    for (const { topic, text } of [...noc.messages, ...eye.messages]) if (text !== '') checker.check(topic, text)
    const seen = checker.seen()
    for (const kind of ['gatewayState', 'siteState', 'placement', 'status', 'progress', 'result', 'reply']) assert.ok(seen.has(kind), kind)
  })
}

function refuses(it: It): void {
  it('refuses retained, late, forged, forbidden, oversized and malformed commands, each with its code, and counts them', async ({
    w,
    as,
  }) => {
    const { a } = await stage(w)
    await using noc = await as('noc')
    await noc.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    await refusals(noc)
    // Too large to be read at all: nobody can be told but the operators.
    await using eye = await as('eye')
    await noc.publish(topics.build('start'), Buffer.alloc(17 * 1024, 0x20))
    await eye.wait(
      (topic, told) => topic.endsWith('gateway/gw/problem') && (told['problem'] as { code: string }).code === 'COMMAND_TOO_LARGE',
      'a problem for operators',
    )
    for (const outcome of [
      'COMMAND_LATE',
      'COMMAND_FORGED',
      'COMMAND_FORBIDDEN',
      'COMMAND_TOO_LARGE',
      'COMMAND_MALFORMED',
      'COMMAND_RETAINED',
    ])
      assert.ok((await counted(w, 'mqtt_commands_total', { action: 'start', outcome })) >= 1, outcome)
    assert.is(a.started.length, 0, 'nothing has moved')
    assert.equal((await w.api<{ migrations: unknown[] }>('GET', '/v1/migrations')).migrations, [])
  })
}

function removesRetained(it: It): void {
  it('takes a retained command away from the broker', async ({ w, as }) => {
    await stage(w)
    await using noc = await as('noc')
    await noc.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    assert.is(codeOfReply(await noc.command('start', { toSite: 'b' }, { retain: true })), 'COMMAND_RETAINED')
    await until(async () => (await counted(w, 'mqtt_published_total', { kind: 'start' })) >= 1, 'the command taken away')
  })
}

function dedupes(it: It): void {
  it('answers a doubled command with what became of the first, and carries it out once', async ({ w, as }) => {
    const { a } = await stage(w)
    await using noc = await as('noc')
    await noc.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    const payload = signCommand(nocKey, topics, 'start', draft({ toSite: 'b' }))
    for (let i = 0; i < 3; i++) await noc.publish(topics.build('start'), payload)
    await until(() => noc.of('reply').length === 3, 'three replies')
    const replies = noc.of('reply').map(({ text }) => JSON.parse(text) as { status: string; handoffId: string })
    assert.equal(replies.map(({ status }) => status).sort(), ['accepted', 'duplicate', 'duplicate'])
    assert.is(new Set(replies.map(({ handoffId }) => handoffId)).size, 1)
    assert.is((await w.api<{ migrations: unknown[] }>('GET', '/v1/migrations')).migrations.length, 1)
    assert.is(await counted(w, 'mqtt_commands_total', { action: 'start', outcome: 'duplicate' }), 2)
    await until(() => a.started.length, 'start')
    assert.is(a.started.length, 1)
  })
}

function fences(it: It): void {
  it('fences by epoch and place, pins, and says what it cannot do yet', async ({ w, as }) => {
    await stage(w)
    await using noc = await as('noc')
    const unpinned = await noc.wait<Placement>(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    assert.is(unpinned.policy.pinned, false)
    const code = async (...args: Parameters<TestClient['command']>) => codeOfReply(await noc.command(...args))
    assert.is(await code('start', { toSite: 'b', expectedEpoch: 7 }), 'EPOCH_STALE')
    assert.is(await code('start', { toSite: 'b', fromSite: 'b' }), 'EPOCH_STALE')
    assert.is(await code('start', { toSite: 'a' }), 'SITE_SAME')
    assert.is(await code('start', { toSite: 'nowhere' }), 'SITE_UNKNOWN')
    assert.is(await code('start', { toSite: 'b', vmId: 'nobody' }), 'VM_UNKNOWN')
    assert.is(await code('prestage', { toSite: 'b', expectedEpoch: 7 }), 'EPOCH_STALE')
    assert.is(await code('cancel', {}), 'MIGRATION_UNKNOWN')
    assert.is(await code('pin', { pinned: true }), 'accepted')
    await noc.wait<Placement>((topic, place) => topic.endsWith('vm/vm-1/placement') && place.policy?.pinned, 'the pin shown')
    assert.is(await code('start', { toSite: 'b' }), 'VM_PINNED')
    await w.restart()
    await until(() => w.gateway.mqtt?.up, 'the gateway at its broker again')
    await until(async () => (await w.api<{ pins: unknown[] }>('GET', '/v1/pins')).pins.length === 1, 'the pin after a restart')
    await w.api('PUT', '/v1/vms/vm-1/pin', { pinned: false })
    assert.equal((await w.api<{ pins: unknown[] }>('GET', '/v1/pins')).pins, [])
  })
}

function prepares(it: It): void {
  it('pre-stages: room is held, its status is told, and the move goes on under its id; a target that cannot says why', async ({
    w,
    as,
  }) => {
    const s = await stage(w)
    await using noc = await as('noc')
    await noc.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    const reply = await noc.command('prestage', { toSite: 'b' })
    assert.is(reply['status'], 'accepted', JSON.stringify(reply))
    const handoffId = reply['handoffId'] as string
    const standing = await noc.wait<Status & { expiresAt: string }>(topic => topic.endsWith(`${handoffId}/status`), 'prestaging')
    assert.equal([standing.phase, standing.seq, standing.standards.acr[0]], ['prestaging', 2, 'servContPlanInd'])
    assert.ok(Date.parse(standing.expiresAt) > Date.now())
    assert.is(s.b.held.length, 1)
    const acting = actOut(s)
    assert.is((await noc.command('start', { toSite: 'b' }))['handoffId'], handoffId)
    await acting
    await noc.wait<Status>((topic, status) => topic.endsWith(`${handoffId}/status`) && status.phase === 'completed', 'completed')
    const phases = noc.of('status').map(({ text }) => (JSON.parse(text) as Status).phase)
    assert.equal(phases, ['prestaging', 'precopy', 'switchover', 'completed'])

    const back = { toSite: 'a', expectedEpoch: 2 }
    const second = await noc.command('prestage', back)
    assert.is((await noc.command('cancel', { expectedEpoch: 2 }))['handoffId'], second['handoffId'])
    await noc.wait<Status>((topic, status) => topic.endsWith(`${second['handoffId']}/status`) && status.phase === 'cancelled', 'cancelled')
    s.a.handlers.hold = async () => {
      throw new GodwitError('PREFLIGHT_MEMORY', 'full')
    }
    assert.is(codeOfReply(await noc.command('prestage', back)), 'PREFLIGHT_MEMORY')
    const failed = await noc.wait<Status>((topic, status) => topic.endsWith('/status') && status.phase === 'failed', 'failed')
    assert.is(failed.problem?.code, 'PREFLIGHT_MEMORY')
  })
}

function cancels(it: It): void {
  it('cancels: by command, and when the bytes are used up', async ({ w, as }) => {
    const { a, b } = await stage(w)
    a.handlers.cancel = async ({ migrationId }) => {
      a.link.report({ migrationId, side: 'source', outcome: 'cancelled', error: { code: 'MIGRATION_CANCELLED', message: 'told to' } })
      b.link.report({ migrationId, side: 'target', outcome: 'cancelled', error: { code: 'MIGRATION_CANCELLED', message: 'told to' } })
    }
    await using noc = await as('noc')
    await noc.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    const first = await noc.command('start', { toSite: 'b' })
    await until(() => a.started.length === 1, 'start')
    const reply = await noc.command('cancel', {})
    assert.equal([reply['status'], reply['handoffId']], ['accepted', first['handoffId']])
    const event = await noc.wait<{ type: string; data: { problem: { code: string } } }>(topic => topic.endsWith('/result'), 'result')
    assert.equal([event.type, event.data.problem.code], ['handoff.cancelled.v1', 'MIGRATION_CANCELLED'])
    await noc.wait<Status>((topic, status) => topic.endsWith('/status') && status.phase === 'cancelled', 'status')

    const second = await noc.command('start', { toSite: 'b', constraints: { maxBytes: 1000 } })
    assert.is(second['status'], 'accepted', JSON.stringify(second))
    await until(() => a.started.length === 2, 'second start')
    const { migrationId } = a.started[1]!.plan
    a.link.progress({ migrationId, side: 'source', phase: 'precopy', wireBytes: 999 })
    a.link.progress({ migrationId, side: 'source', phase: 'precopy', wireBytes: 1001 })
    const ended = await w.until(migrationId, ({ state }: MigrationRecord) => state === 'ABORTED')
    assert.is(ended.outcome, 'cancelled')
  })
}

function measures(it: It): void {
  it('hands measurements on, checked and in order, and shows whose VM it is', async ({ w, as, measured }) => {
    await stage(w)
    await using telco = await as('telco', [])
    await using eye = await as('eye')
    await eye.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    const latency = (seq: number) => ({ seq, vmId: 'vm-1', targetSite: 'a', rttMs: 10 + seq })
    const at = (rest: string) => `${topics.root}/${rest}`
    for (const seq of [1, 3, 2]) await telco.publish(at('ue/u1/meas/latency'), latency(seq), { qos: 0 })
    await telco.publish(at('ue/u1/meas/latency'), '{', { qos: 0 })
    await telco.publish(at('ue/u1/meas/radio'), { trigger: 'EVENT_A3', serving: { nrcgi: 'x', rsrpDbm: -90 }, neighbours: [] }, { qos: 0 })
    await telco.publish(at('ue/u1/meas/location'), { lat: 59.9, lon: 10.7 }, { qos: 0 })
    await telco.publish(at('site/a/link/b'), { rttMs: 4, sampledAt: new Date().toISOString() }, { qos: 0 })
    await until(() => measured.length === 5, 'five measurements')
    const seqs = measured.flatMap(one => (one.kind === 'latency' ? [one.value.seq] : []))
    assert.equal(seqs, [1, 3])
    assert.equal(
      measured.map(({ kind }) => kind),
      ['latency', 'latency', 'radio', 'location', 'link'],
    )
    assert.is(await counted(w, 'mqtt_measurements_total', { kind: 'latency', outcome: 'malformed' }), 1)
    assert.is(await counted(w, 'mqtt_measurements_total', { kind: 'latency', outcome: 'old' }), 1)
    await eye.wait<Placement>((topic, place) => topic.endsWith('vm/vm-1/placement') && place.ueKeys?.includes('u1'), 'the user')
  })
}

function keepsOut(it: It): void {
  it('lets strangers in nowhere, and everybody only where they belong', async ({ w, broker, as }) => {
    const { a } = await stage(w)
    const refused = await connectAs(
      { name: 'noc', password: 'wrong' },
      { url: broker.url(w), version: broker.version, options: { reconnectPeriod: 0 } },
    )
      .then(() => false)
      .catch(() => true)
    assert.ok(refused, 'a wrong password')
    await using eye = await as('eye')
    await using noc = await as('noc')
    await using telco = await as('telco', [])
    await eye.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    // A command from one who may only measure, and a forged birth: neither is heard, whatever the broker does with the
    // sender.
    const command = signCommand(nocKey, topics, 'start', draft({ toSite: 'b' }))
    telco.client.publish(topics.build('start'), JSON.stringify(command), { qos: 1 })
    await using telco2 = await as('telco', [])
    const birth = { online: false, timestamp: new Date().toISOString(), bdSeq: 1 }
    telco2.client.publish(topics.build('siteState', { siteId: 'a' }), JSON.stringify(birth), { qos: 1, retain: true })
    assert.is(codeOfReply(await noc.command('cancel', {})), 'MIGRATION_UNKNOWN')
    await new Promise(resolve => setTimeout(resolve, 100))
    assert.is(a.started.length, 0)
    assert.ok(eye.of('siteState').every(({ text }) => (JSON.parse(text) as SiteState).bdSeq > 1))
    assert.equal(eye.of('reply'), [], 'replies are for those who asked')
    assert.equal([...eye.of('start'), ...noc.of('start'), ...noc.of('latency')], [], 'nor are commands and measurements shown around')
  })
}

function comesBack(it: It): void {
  it('a site that comes back is born again with a higher number, and its VMs stay placed', async ({ w, as }) => {
    const { a } = await stage(w)
    await using eye = await as('eye')
    const first = await eye.wait<SiteState>((topic, site) => topic.endsWith('site/a/state') && site.online, 'birth')
    await a.link.close()
    await eye.wait<SiteState>((topic, site) => topic.endsWith('site/a/state') && !site.online, 'death')
    await w.node('a', { vms: [vm('vm-1')] })
    const second = await eye.wait<SiteState>(
      (topic, site) => topic.endsWith('site/a/state') && site.online && site.bdSeq > first.bdSeq,
      'second birth',
    )
    assert.ok(second.bdSeq > first.bdSeq)
    assert.ok(eye.of('placement').every(({ text }) => text !== ''))
  })
}

const PARTS = [
  showsState,
  carriesOut,
  matchesTheDocument,
  refuses,
  removesRetained,
  dedupes,
  fences,
  prepares,
  cancels,
  measures,
  keepsOut,
  comesBack,
]

type As = (who: Parameters<typeof connectAs>[0], subscriptions?: string[]) => Promise<TestClient>

async function refusals(noc: TestClient): Promise<void> {
  const code = async (...args: Parameters<TestClient['command']>) => {
    const reply = await noc.command(...args)
    const problem = reply['problem'] as { code: string; type: string; title: string; status: number; detail: string }
    assert.is(reply['status'], 'rejected')
    assert.is(problem.type, `urn:godwit:problem:${problem.code}`)
    assert.ok(problem.title && problem.detail && problem.status >= 400)
    return problem.code
  }
  const to = { toSite: 'b' }
  assert.is(await code('start', { ...to, notAfter: new Date(Date.now() - 10_000).toISOString() }), 'COMMAND_LATE')
  assert.is(await code('start', to, { mangle: payload => ({ ...payload, toSite: 'c' }) }), 'COMMAND_FORGED')
  assert.is(await code('start', to, { key: readerKey }), 'COMMAND_FORBIDDEN')
  assert.is(await code('start', { ...to, colour: 'red' }), 'COMMAND_MALFORMED')
  assert.is(await code('start', { ...to, vmId: '+' }), 'COMMAND_MALFORMED')
  assert.is(await code('start', to, { retain: true }), 'COMMAND_RETAINED')
}
