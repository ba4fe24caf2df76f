// What everything in a run shares: chance, the trace, and the points at which a party can be struck. Enters: what
// happens. Leaves: the trace.
// Always holds: all chance comes from one seeded sequence, drawn in the order of events; a struck process gets no
// answer from where it stood.
import { createRandom, type Random } from '../../../sim-network/random.ts'
import type { Log, LogFields } from '../../../wire/log.ts'
import { never, nowMs, type Process, processNow } from './time.ts'

/**
 * A place in the life of a process where it can be struck: before or after something that others or the disk can see.
 */
type Point = { process: Process; label: string }

export class Violation extends Error {
  readonly invariant: string
  constructor(invariant: string, message: string) {
    super(`${invariant}: ${message}`)
    this.invariant = invariant
  }
}

type Stage = {
  random: Random
  trace: string[]
  /** Production logs too. */
  verbose: boolean
  violation: Violation | undefined
  /** Called at each point; may kill the process. */
  onPoint: (point: Point) => void
  /** Adds a message's way, ms. */
  diskMs: () => number
  qmpMs: () => number
}

let current: Stage = fresh('0')

function fresh(seed: number | string): Stage {
  const random = createRandom(seed)
  return {
    random,
    trace: [],
    verbose: false,
    violation: undefined,
    onPoint: () => {},
    diskMs: () => random.between(0.1, 4),
    qmpMs: () => random.between(0.1, 2),
  }
}

export const stage = (): Stage => current
export function resetStage(seed: number | string): Stage {
  current = fresh(seed)
  return current
}

export function say(text: string): void {
  const { trace } = current
  if (trace.length < 20_000) trace.push(`${nowMs().toFixed(1).padStart(10)}  ${processNow().name.padEnd(10)} ${text}`)
}

/** The first breach counts. */
export function breach(invariant: string, message: string): void {
  if (current.violation) return
  say(`BREACH ${invariant}: ${message}`)
  current.violation = new Violation(invariant, message)
}

/** True when the process is dead, now or because it was struck here. */
export function struck(label: string): boolean {
  const process = processNow()
  if (!process.alive) return true
  current.onPoint({ process, label })
  return !process.alive
}

/** As struck(), for code that can wait: a struck process waits for ever. */
export const pass = async (label: string): Promise<void> => {
  if (struck(label)) await never()
}

const clean = (fields: LogFields = {}): string => {
  const texts = Object.entries(fields).map(([key, value]) => {
    const code = value instanceof Error ? `${(value as { code?: string }).code ?? ''} ${value.message.slice(0, 160)}` : undefined
    return `${key}=${code ?? JSON.stringify(value)?.slice(0, 120)}`
  })
  return texts.join(' ')
}

/** Production's log, into the trace. */
export const traceLog: Log = {
  debug: (message, fields) => void (current.verbose && say(`debug ${message} ${clean(fields)}`)),
  info: (message, fields) => void (current.verbose && say(`info  ${message} ${clean(fields)}`)),
  warn: (message, fields) => void (current.verbose && say(`warn  ${message} ${clean(fields)}`)),
  error: (message, fields) => void (current.verbose && say(`ERROR ${message} ${clean(fields)}`)),
  child: () => traceLog,
}
