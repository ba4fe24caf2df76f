// Time as a parameter: code that stores or compares wall-clock times receives a Clock, so tests control it.

export type Clock = {
  /** Unix ms. */
  now(): number
}

export const systemClock: Clock = { now: () => Date.now() }

/** Unix seconds, the unit of certificates. */
export const unixSeconds = (clock: Clock): number => Math.floor(clock.now() / 1000)

/** The same of the system's clock, for commands and benchmarks. */
export const nowSeconds = (): number => unixSeconds(systemClock)
