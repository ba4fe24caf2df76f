// Converts the options of `godwit sim link` to the two directions of a link. Pure, except for reading a trace. Enters:
// options. Leaves: link options, or USAGE that names the error.
import { readText } from '../../ops/files.ts'
import { parseDuration } from '../../ops/units.ts'
import { createLink, type LinkModelOptions } from '../../sim-network/link.ts'
import { profileOf, profiles } from '../../sim-network/profiles.ts'
import { parseRateTrace, type Rate } from '../../sim-network/server.ts'
import { GodwitError } from '../../wire/errors.ts'
import { didYouMean } from '../suggest.ts'

type LinkWish = {
  profile?: string | undefined
  rate?: string | undefined
  rtt?: number | undefined
  jitter?: number | undefined
  loss?: string | undefined
  queue?: number | undefined
  blackout?: string | undefined
  trace?: string | undefined
}
type Both = { up: LinkModelOptions; down: LinkModelOptions }

const MTU_BYTES = 1500
const QUEUE_BYTES_MIN = 32 * MTU_BYTES
const usage = (message: string) => new GodwitError('USAGE', message, { hint: 'see godwit sim link --help' })

/**
 * A profile, overridden by the other options; or a link of --rate or --trace. Up is from the first namespace to the
 * second.
 */
export async function linkOf(wish: LinkWish): Promise<Both> {
  const base = wish.profile === undefined ? undefined : baseOf(wish.profile)
  if (!base && wish.rate === undefined && wish.trace === undefined) throw usage('--profile, --rate or --trace is missing')
  if (wish.rate !== undefined && wish.trace !== undefined) throw usage('--rate and --trace exclude each other')
  const rates = await ratesOf(wish)
  const both = { up: direction(wish, base?.up, rates?.up), down: direction(wish, base?.down, rates?.down) }
  for (const options of [both.up, both.down]) check(options)
  return both
}

function baseOf(name: string): Both {
  const profile = profileOf(name)
  if (!profile)
    throw usage(`unknown profile '${name}'${didYouMean(name, Object.keys(profiles))}; known profiles: ${Object.keys(profiles).join(', ')}`)
  return { up: profile.up, down: profile.down }
}

async function ratesOf({ rate, trace }: LinkWish): Promise<{ up: Rate; down: Rate } | undefined> {
  if (trace !== undefined) {
    const both = { trace: parseRateTrace(await readText(trace)) }
    return { up: both, down: both }
  }
  if (rate === undefined) return undefined
  const [up, down = up, ...more] = rate.split('/').map(text => numberOf(text, '--rate', 'Mbit/s, such as 100 or 20/100 (up/down)') * 1e6)
  if (more.length > 0) throw usage(`--rate '${rate}': expected one rate, or two as up/down`)
  return { up: { bitsPerSecond: up! }, down: { bitsPerSecond: down! } }
}

function direction(wish: LinkWish, base: LinkModelOptions | undefined, rate: Rate | undefined): LinkModelOptions {
  const chosen = rate ?? base!.rate
  const delayMs = wish.rtt === undefined ? (base?.delayMs ?? 0) : wish.rtt / 2
  const isOwn = base !== undefined && rate === undefined && wish.rtt === undefined
  const queueBytes = wish.queue ?? (isOwn ? base.queueBytes : queueOf(chosen, delayMs))
  return {
    ...(base ?? { mtuBytes: MTU_BYTES }),
    ...{ rate: chosen, delayMs, queueBytes },
    ...(wish.jitter === undefined ? {} : { jitterMs: wish.jitter }),
    ...(wish.loss === undefined ? {} : { loss: { ratio: numberOf(wish.loss.replace(/%$/, ''), '--loss', 'percent, such as 0.5%') / 100 } }),
    ...(wish.blackout === undefined ? {} : { blackouts: [blackoutOf(wish.blackout)] }),
  }
}

/** One bandwidth-delay product, at least 32 packets; of a schedule's highest rate, and of a trace 100 packets. */
function queueOf(rate: Rate, oneWayMs: number): number {
  if ('trace' in rate) return 100 * MTU_BYTES
  const bitsPerSecond = 'steps' in rate ? Math.max(...rate.steps.map(step => step.bitsPerSecond)) : rate.bitsPerSecond
  return Math.max(QUEUE_BYTES_MIN, Math.round((bitsPerSecond / 8000) * 2 * oneWayMs))
}

function blackoutOf(text: string) {
  const parts = text.split('/').map(part => parseDuration(part))
  const [startMs, durationMs, everyMs] = parts
  if (parts.length > 3 || startMs === undefined || durationMs === undefined || (parts.length === 3 && everyMs === undefined))
    throw usage(`--blackout '${text}': expected START/DURATION or START/DURATION/EVERY, such as 4s/1s/20s`)
  return { startMs, durationMs, ...(everyMs === undefined ? {} : { everyMs }) }
}

function numberOf(text: string, option: string, form: string): number {
  const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN
  if (Number.isNaN(value)) throw usage(`${option} '${text}': expected ${form}`)
  return value
}

function check(options: LinkModelOptions): void {
  try {
    createLink(options, 1)
  } catch (error) {
    throw usage(error instanceof Error ? error.message : String(error))
  }
}
