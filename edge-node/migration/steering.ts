// Between the controller (rate/controller.ts) and what it steers. Enters: counters of QEMU, path and pipeline. Leaves:
// the level and size of batches, QEMU's parameters, an end of the migration where the downtime asked for cannot be
// kept; and a list of what was decided and why, for the report and the debug log.
// Always holds: QEMU is told only what has changed; a sample that cannot be had changes nothing.
import type { Plan } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import type { Bulk } from '../link/link.ts'
import type { MigrationInfo, QmpCommands } from '../qmp/commands.ts'
import { createCarriersWatch } from '../rate/carriers.ts'
import { createRatio } from '../rate/control.ts'
import { type Change, Controller, type ControllerDecision, type ControllerSample } from '../rate/controller.ts'
import type { Gate } from '../rate/gate.ts'
import { createLossWatch } from '../rate/loss.ts'
import type { Conversation } from './conversation.ts'
import type { Outgoing } from './outgoing.ts'

/** Parameters are set anew only when they change by more than this share. */
const CHANGE_SHARE = 0.1
const PATH_LOG_MS = 1_000
/** Of a decision's value in a report (wire/control.ts). */
const VALUE_CHARS_MAX = 64
/** What the unix socket between QEMU and us holds (net.core.wmem_default and our read buffer). */
const SOCKET_BYTES = 256 * 1024

type SteeringOptions = {
  plan: Plan
  /** Of the meeting at hand. */
  gate: () => Gate
  outgoing: Outgoing
  commands: QmpCommands
  /** Fixed zstd level, or 'auto'. */
  compressionLevel?: number | 'auto' | undefined
  workers?: number | undefined
  /** What carries the page streams, and why: for the list. */
  transport: string
  bulk?: (() => Bulk | null) | undefined
  talk: Pick<Conversation, 'carriers' | 'changeOver'>
  fail: (error: GodwitError) => void
  log: Log
}

type Steering = {
  /** One sample, one decision. `info`: QEMU's counters, where they could be had. */
  step(atMs: number, info: MigrationInfo | undefined, isStopped: boolean): Promise<void>
  readonly changes: readonly Change[]
  readonly changesDropped: number
}

export function createSteering(options: SteeringOptions): Steering {
  const { plan, gate, outgoing, log, compressionLevel = 'auto' } = options
  const controller = new Controller({
    downtimeMs: plan.downtimeMs,
    isAsked: plan.downtimeAsked === true,
    isLive: plan.method === 'live',
    workers: options.workers ?? 1,
    streams: plan.streams,
    level: compressionLevel === 'auto' ? undefined : compressionLevel,
  })
  const ratio = createRatio()
  const lossWatch = createLossWatch()
  const carriersWatch = createCarriersWatch()
  let told: ControllerDecision | undefined
  let logged = 0
  let pathLoggedAtMs = Number.NEGATIVE_INFINITY

  const logChanges = () => {
    const total = controller.changes.length + controller.changesDropped
    for (const change of controller.changes.slice(logged - total)) if (logged < total) log.debug('decided', change)
    logged = total
  }
  return {
    async step(atMs, info, isStopped) {
      const bulk = options.bulk?.() ?? null
      const loss = bulk && lossWatch({ atMs, ...bulk })
      if (loss) {
        gate().flight.setLossy(loss.isLossy)
        controller.note(atMs, 'loss', loss.isLossy ? 'yes' : 'no', `${(loss.ratio * 100).toFixed(2)} % of recent packets`)
      }
      const sample = sampleOf(options, ratio, atMs, info, isStopped)
      if (!sample) return
      if (!told)
        controller.note(
          atMs,
          'transport',
          options.transport,
          `${plan.streams} page streams, ${bulk?.congestion ?? 'unknown congestion control'}`,
        )
      if (atMs - pathLoggedAtMs >= PATH_LOG_MS) {
        pathLoggedAtMs = atMs
        log.debug('path', { ...sample.path, ...sample.qemu, ratio: sample.ratio, waitingBytes: sample.waitingBytes, loss: loss?.ratio })
      }
      const decision = controller.step(sample)
      const why = carriersWatch({
        ...{ atMs, used: options.talk.carriers, best: bulk?.carriers, isLossy: loss?.isLossy === true, isEnd: isStopped || decision.isEnd },
      })
      if (why) {
        controller.note(atMs, 'carriers', `${bulk?.carriers?.ids.join(' ')}`.slice(0, VALUE_CHARS_MAX), why)
        options.talk.changeOver(why)
      }
      logChanges()
      gate().flight.setFar(!decision.isEnd)
      outgoing.pipeline?.setLevel(decision.level)
      outgoing.pipeline?.setBatching(decision.batching)
      if (decision.refuse) {
        const { predictedMs, reason } = decision.refuse
        const message = `the requested downtime is ${plan.downtimeMs} ms, the predicted downtime is ${predictedMs} ms: ${reason}`
        return options.fail(new GodwitError('DOWNTIME_UNREACHABLE', message))
      }
      if (plan.method === 'live' && !isStopped) await tellQemu(options.commands, decision, told)
      told = decision
    },
    get changes() {
      return controller.changes
    },
    get changesDropped() {
      return controller.changesDropped
    },
  }
}

function sampleOf(
  { gate, outgoing }: SteeringOptions,
  ratio: ReturnType<typeof createRatio>,
  atMs: number,
  info: MigrationInfo | undefined,
  isStopped: boolean,
): ControllerSample | undefined {
  const stats = outgoing.pipeline?.stats()
  if (!stats) return undefined
  const { ram, throttlePercent = 0 } = info ?? {}
  const { compressed, link, workers } = stats.waits
  const freeBytes = (stats.pages.zero + stats.pages.unchanged) * PAGE_BYTES
  return {
    atMs,
    isStopped,
    path: gate().flight.estimate(),
    waitingBytes: SOCKET_BYTES + stats.buffered.bytes,
    ratio: ratio({ atMs, guestBytes: stats.guestBytes, wireBytes: outgoing.wireBytes, freeBytes }),
    compression: { batches: compressed, linkWaits: link, workerWaits: workers, busyMs: stats.busyMs.compress },
    qemu:
      ram?.remainingBytes === undefined
        ? undefined
        : {
            rounds: ram.dirtySyncCount ?? 1,
            remainingBytes: ram.remainingBytes,
            dirtyBytesPerSecond: (ram.dirtyPagesPerSecond ?? 0) * ram.pageBytes,
            throttlePercent,
          },
  }
}

const isOther = (a: number | undefined, b: number | undefined) =>
  a === undefined || b === undefined ? a !== b : Math.abs(a - b) > CHANGE_SHARE * Math.max(a, b)

async function tellQemu(commands: QmpCommands, now: ControllerDecision, told: ControllerDecision | undefined): Promise<void> {
  const { downtimeLimitMs, switchoverBytesPerSecond, throttle } = now
  if (throttle && throttle.initialPercent !== told?.throttle?.initialPercent)
    await commands.setParameters({
      other: { 'cpu-throttle-initial': throttle.initialPercent, 'cpu-throttle-increment': throttle.incrementPercent },
    })
  if (!isOther(downtimeLimitMs, told?.downtimeLimitMs) && !isOther(switchoverBytesPerSecond, told?.switchoverBytesPerSecond)) {
    now.downtimeLimitMs = told!.downtimeLimitMs
    now.switchoverBytesPerSecond = told!.switchoverBytesPerSecond
    return
  }
  await commands.setParameters({
    downtimeLimitMs,
    ...(switchoverBytesPerSecond === undefined ? {} : { availSwitchoverBandwidthBytesPerSecond: switchoverBytesPerSecond }),
  })
}
