// The scene of the demo: a VM follows its user past three sites (the network: road.ts).
//
//   user's client ── GET every 50 ms ──▶ gateway's stable address ── service stream, emulated link ──▶ site ──▶ guest
//   phone, probes ── MQTT latency, links ──▶ gateway: policy ── migration ──▶ the VM is where the user is
//
// Time is compressed by a factor of 60, and the policy's times (POLICY) with it: its decisions are those of the default
// policy, only faster.

import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { LiveExplanation } from '../../gateway/policy/live.ts'
import { eventually, sleep } from '../../ops/deadline.ts'
import { requestJson } from '../../ops/http-client.ts'
import { createRandom } from '../../sim-network/random.ts'
import type { GatewayStatus, MigrationRecord } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'
import { MIB } from '../../wire/units.ts'
import { type DriveHandoff, HANDOFFS_MIN, handoffOf, judgeDrive, reportLines } from './drive-report.ts'
import type { Observer } from './observer.ts'
import { createRoad, linkAt, ROAD_SITES, type Road } from './road.ts'
import { boot, type DemoContext, examine, guestLines, judgeGuest, type SceneResult, VM, withStage } from './scene.ts'
import { type DemoStage, freePort } from './stage.ts'
import { connectTelco, type DemoTelco, type HandoffWord } from './telco.ts'
import { createUser, type DemoUser } from './user.ts'
import { createView, type DemoScene, type DemoView } from './view.ts'

const HOST = '127.0.0.1'
const SERVICE = 'http'
const DRIVE_MS = 64_000
/** The user stands at the end of the road, so that requests follow the last handoff, which a busy machine may delay. */
const STAND_MS = 5_000
const LAST_HANDOFF_MS = 80_000
const TICK_MS = 200
const MEASURE_EVERY_MS = 1_000
const LINKS_EVERY_MS = 15_000
const REQUEST_EVERY_MS = 50
const REQUEST_DEADLINE_MS = 5_000
const FIRST_ANSWER_MS = 30_000
/** The view shows the median response time of this span. */
const RECENT_MS = 3_000
/** Maximum error of a phone's probe. */
const PROBE_NOISE_MS = 1

const GUEST = { memoryMiB: 128, fillBytes: 48 * MIB, dirtyBytesPerSecond: MIB, auditBytesPerSecond: 16 * MIB, beatMs: 10 }
const SPEC = { nics: [{ type: 'user' }], services: [{ name: SERVICE, port: 80 }], policy: { sloMs: 30 } }
/**
 * The defaults of gateway/policy/settings.ts, scaled: time to trigger 8 s -> 2 s, residence 30 s -> 5 s, smoothing of 5
 * s -> 1.5 s.
 */
const POLICY = {
  name: 'regret',
  smoothing: 0.5,
  regret: { triggerMs: 2_000, residenceMs: 5_000, residencePerMigration: 1, returnWithinMs: 20_000 },
  cost: { bandwidthBytesPerSecond: 12.5e6 },
  prestage: { isEnabled: false },
}

/** Unix ms of a monotonic clock, as the gateway's times are. */
const nowMs = () => performance.timeOrigin + performance.now()

export async function playDrive(context: DemoContext): Promise<SceneResult> {
  const road = createRoad({ seed: context.seed, driveMs: DRIVE_MS })
  const ports = { service: await freePort(), mqtt: await freePort() }
  const password = randomBytes(16).toString('hex')
  const passwordFile = join(context.dir, 'telco.password')
  await writeFile(passwordFile, `${password}\n`, { mode: 0o600 })
  const gateway = {
    services: [{ vm: VM, service: SERVICE, listen: `${HOST}:${ports.service}` }],
    mqtt: {
      mode: 'embedded',
      listen: { host: HOST, port: ports.mqtt },
      users: { telco: { passwordFile, may: ['measure', 'observe'] } },
      places: Object.fromEntries(ROAD_SITES.map(site => [site, { geo: road.placeOf(site) }])),
    },
    policy: POLICY,
  }
  const start = road.userAt(0)
  const sites = ROAD_SITES.map(name => ({ name, link: { up: linkAt(road.rttMs(start, name)), down: linkAt(road.rttMs(start, name)) } }))
  context.say(`Godwit demo in ${context.dir}: a gateway; sites a, b and c along a road, 100 Mbit/s each; a user drives past them`)
  return await withStage(context, { sites, gateway }, async (stage, observer) => {
    await boot(context, stage, observer, 'a', { ...GUEST, spec: SPEC })
    const view = createView(context.io, context.say, nowMs, context.isQuiet)
    const drive = new Drive(context, stage, road, view)
    const telco = await connectTelco({
      url: `mqtt://${HOST}:${ports.mqtt}`,
      user: 'telco',
      password,
      vm: VM,
      onHandoff: word => drive.heard(word),
    })
    const user = createUser({ host: HOST, port: ports.service, everyMs: REQUEST_EVERY_MS, deadlineMs: REQUEST_DEADLINE_MS, now: nowMs })
    try {
      await drive.go(user, telco)
    } finally {
      view.finish()
      await user.stop()
      await telco.close()
    }
    return await conclude(context, stage, observer, user)
  })
}

async function conclude(context: DemoContext, stage: DemoStage, observer: Observer, user: DemoUser): Promise<SceneResult> {
  const guest = await examine(context, observer)
  const { migrations } = await requestJson<{ migrations: MigrationRecord[] }>({ ...stage.gateway, path: '/v1/migrations' })
  const silence = (fromMs: number, toMs: number) => {
    const offset = performance.timeOrigin
    return observer.silenceBetween(fromMs - offset, toMs - offset)?.ms ?? 0
  }
  const handoffs: DriveHandoff[] = migrations.toReversed().map(record => handoffOf(record, user, silence))
  const summary = user.summary()
  const drive = { handoffs, user: summary, wrong: [...user.wrong], requests: user.requests }
  const problems = [...judgeDrive(drive, REQUEST_DEADLINE_MS), ...judgeGuest(guest)]
  const facts = { handoffs, user: summary, wrong: drive.wrong, ...guest }
  return { facts, lines: ['', ...reportLines(drive), ...guestLines(guest)], problems }
}

/** The drive from before the first site to beyond the last one. */
class Drive {
  readonly #context: DemoContext
  readonly #stage: DemoStage
  readonly #road: Road
  readonly #view: DemoView
  readonly #probe: ReturnType<typeof createRandom>
  #handoff: DemoScene['handoff']
  #vmSite: string | undefined
  #because: string | undefined
  #isAsking = false
  #completed = 0
  #quietSinceMs = 0

  constructor(context: DemoContext, stage: DemoStage, road: Road, view: DemoView) {
    this.#context = context
    this.#stage = stage
    this.#road = road
    this.#view = view
    this.#probe = createRandom(context.seed).fork('probe')
  }

  /** Processes a handoff message of MQTT. */
  heard(word: HandoffWord): void {
    if (word.kind === 'progress') {
      if (!this.#handoff) return
      const { bytesSent, bytesTotalEst } = word
      if (bytesSent === undefined || !bytesTotalEst) return
      this.#handoff = { ...this.#handoff, share: Math.min(1, bytesSent / bytesTotalEst), bytes: bytesTotalEst }
      return
    }
    const { from, to, phase } = word
    const isOver = ['completed', 'failed', 'cancelled'].includes(phase)
    if (!this.#handoff && !isOver) void this.#announce(from, to)
    if (isOver) {
      this.#view.note(`handoff ${from} -> ${to}: ${phase}`)
      this.#quietSinceMs = nowMs()
      this.#completed += phase === 'completed' ? 1 : 0
    }
    this.#handoff = isOver ? undefined : { ...this.#handoff, from, to, phase }
  }

  async go(user: DemoUser, telco: DemoTelco): Promise<void> {
    const { signal } = this.#context
    const isAnswered = () => user.requests.some(({ answeredMs }) => answeredMs !== undefined) || undefined
    await eventually(isAnswered, { ms: FIRST_ANSWER_MS, what: "the first answer to the user's requests", signal })
    this.#view.note('the service answers; the user starts to drive')
    const beganMs = nowMs()
    this.#quietSinceMs = beganMs + DRIVE_MS
    let measuredMs = Number.NEGATIVE_INFINITY
    let linksMs = Number.NEGATIVE_INFINITY
    while (!this.#isOver(beganMs)) {
      const at = nowMs()
      const place = this.#road.userAt(at - beganMs)
      for (const site of ROAD_SITES) {
        const { delayMs } = linkAt(this.#road.rttMs(place, site))
        for (const direction of ['up', 'down'] as const) this.#stage.linkOf(site).change(direction, { delayMs })
      }
      if (at - linksMs >= LINKS_EVERY_MS) {
        linksMs = at
        for (const from of ROAD_SITES) for (const to of ROAD_SITES) if (from !== to) telco.link(from, to, this.#road.siteRttMs(from, to))
      }
      if (at - measuredMs >= MEASURE_EVERY_MS) {
        measuredMs = at
        for (const site of ROAD_SITES) telco.latency(site, this.#road.rttMs(place, site) + this.#probe.between(0, PROBE_NOISE_MS))
        telco.location(this.#road.geoOf(place))
        this.#ask()
      }
      this.#view.show(this.#scene(place.x, user))
      await sleep(TICK_MS, signal)
    }
  }

  #isOver(beganMs: number): boolean {
    const standsMs = nowMs() - beganMs - DRIVE_MS
    const isDone = !this.#handoff && this.#completed >= HANDOFFS_MIN && nowMs() - this.#quietSinceMs >= STAND_MS
    return (standsMs >= STAND_MS && isDone) || standsMs >= LAST_HANDOFF_MS
  }

  /** Asks where the VM is and why, without blocking the loop, which must keep its clock. */
  #ask(): void {
    if (this.#isAsking) return
    this.#isAsking = true
    const look = async () => {
      const { vms } = await requestJson<GatewayStatus>({ ...this.#stage.gateway, path: '/v1/status', timeoutMs: 2_000 })
      const latest = vms.filter(vm => vm.name === VM && vm.state !== 'incoming').toSorted((a, b) => b.epoch - a.epoch)[0]
      this.#vmSite = latest?.site
      this.#because = (await this.#explain()).because
    }
    look()
      .catch(error => {
        if (!(error instanceof GodwitError)) throw error
      })
      .finally(() => {
        this.#isAsking = false
      })
  }

  #explain(): Promise<LiveExplanation> {
    return requestJson<LiveExplanation>({ ...this.#stage.gateway, path: `/v1/vms/${VM}/explain`, timeoutMs: 2_000 })
  }

  async #announce(from: string, to: string): Promise<void> {
    const why = await this.#explain().catch(() => undefined)
    this.#view.note(`the policy moves the VM ${from} -> ${to}: ${why?.lastMove?.because ?? 'reason unknown'}`)
  }

  #scene(x: number, user: DemoUser): DemoScene {
    const road = this.#road
    // The road begins one kilometre before the first site.
    const share = (kilometres: number) => (kilometres + 1) / road.lengthKm
    const place = { x, y: 0 }
    return {
      user: share(x),
      sites: ROAD_SITES.map((name, index) => ({ name, at: share(index * 10), rttMs: road.rttMs(place, name) })),
      vmSite: this.#vmSite,
      requests: { ...user.summary(), p50Ms: user.summary(nowMs() - RECENT_MS).p50Ms },
      handoff: this.#handoff,
      because: this.#because,
    }
  }
}
