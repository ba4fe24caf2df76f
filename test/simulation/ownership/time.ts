// Virtual time, and processes that can be killed. Enters: callbacks. Leaves: the same calls, in order of virtual time,
// each in its process.
// Always holds: nothing happens twice at one instant of the run: between two events all promises have settled; a
// process that is dead gets no further event and reaches nothing, so what its promises still do is of no effect;
// Date.now() is the clock of the process's own host, which a test may set wrong, while performance.now() never jumps.
import { AsyncLocalStorage } from 'node:async_hooks'
import { createVirtualClock, type VirtualClock } from '../../../sim-network/clock.ts'

export type Process = {
  name: string
  alive: boolean
  host: { clockOffsetMs: number }
  /** SIGSTOP until then: what is due comes later, at SIGCONT (thaw). */
  frozenUntilMs?: number
  /** What has become due meanwhile, in order. */
  held?: (() => void)[]
}

/** Unix ms at the start of every run. */
export const EPOCH_MS = 1_800_000_000_000
const real = { setImmediate: globalThis.setImmediate, now: performance.now.bind(performance) }
const inProcess = new AsyncLocalStorage<Process>()
const OUTSIDE: Process = { name: 'world', alive: true, host: { clockOffsetMs: 0 } }

let clock: VirtualClock = createVirtualClock()
let random: () => number = () => 0.5

export const nowMs = (): number => clock.nowMs()
export const processNow = (): Process => inProcess.getStore() ?? OUTSIDE
export const runIn = <T>(process: Process, body: () => T): T => inProcess.run(process, body)

/** A promise that never settles: what a dead process waits for. */
export const never = <T>(): Promise<T> => new Promise<T>(() => {})

/** Calls `run` in the process, unless it is dead by then. */
export function later(process: Process, ms: number, run: () => void): { cancel(): void } {
  let timer: { cancel(): void }
  let isCancelled = false
  const again = () => {
    if (!isCancelled) timer = clock.at(clock.nowMs(), due)
  }
  const due = () => {
    if (!process.alive) return
    const { frozenUntilMs = 0 } = process
    if (frozenUntilMs > clock.nowMs()) hold(process, frozenUntilMs, again)
    else runIn(process, run)
  }
  timer = clock.at(clock.nowMs() + ms, due)
  return {
    cancel() {
      isCancelled = true
      timer.cancel()
    },
  }
}

function hold(process: Process, untilMs: number, again: () => void): void {
  process.held ??= []
  if (process.held.push(again) === 1) clock.at(untilMs, () => thaw(process))
}

/** SIGCONT, or the end of the time: what was held comes now, in its order. */
export function thaw(process: Process): void {
  for (const again of process.held?.splice(0) ?? []) again()
}

export const pause = (process: Process, ms: number): Promise<void> => new Promise(resolve => void later(process, ms, resolve))

type Handle = { unref(): Handle; ref(): Handle; hasRef(): boolean; refresh(): Handle; close(): void }

function startTimer(run: (...args: unknown[]) => void, ms: number | undefined, every: boolean, args: unknown[]): Handle {
  const process = processNow()
  const delayMs = Math.max(every ? 1 : 0, Number(ms) || 0)
  let timer = { cancel: () => {} }
  const arm = () => {
    timer = later(process, delayMs, () => {
      if (every) arm()
      run(...args)
    })
  }
  if (process.alive) arm()
  const handle: Handle = {
    unref: () => handle,
    ref: () => handle,
    hasRef: () => true,
    refresh: () => handle,
    close: () => timer.cancel(),
  }
  return handle
}

const stop = (handle: unknown) => (handle as Handle | undefined)?.close?.()

/** Puts virtual time in the place of the machine's, for this process (node) for good. */
export function installTime(): void {
  Object.assign(globalThis, {
    setTimeout: (run: () => void, ms?: number, ...args: unknown[]) => startTimer(run, ms, false, args),
    setInterval: (run: () => void, ms?: number, ...args: unknown[]) => startTimer(run, ms, true, args),
    setImmediate: (run: () => void, ...args: unknown[]) => startTimer(run, 0, false, args),
    clearTimeout: stop,
    clearInterval: stop,
    clearImmediate: stop,
  })
  Date.now = () => EPOCH_MS + Math.floor(clock.nowMs()) + processNow().host.clockOffsetMs
  performance.now = () => clock.nowMs()
  Math.random = () => random()
}

/** A fresh time for a run. */
export function resetTime(chance: () => number): void {
  clock = createVirtualClock()
  random = chance
}

const settle = (): Promise<void> => new Promise(resolve => void real.setImmediate(resolve))

/**
 * Runs events until `done` says so or `untilMs` has come; `look` after each, when its promises have settled. Says how
 * many there were.
 */
export async function runEvents(untilMs: number, look: () => void, done: () => boolean): Promise<number> {
  let events = 0
  await settle()
  for (let next = clock.nextMs(); next !== undefined && next <= untilMs && !done(); next = clock.nextMs()) {
    clock.runNext()
    events += 1
    await settle()
    look()
  }
  return events
}

export const realMs = (): number => real.now()
