// Time as a parameter: everything that writes down or compares wall-clock times takes a Clock, so tests move it by hand.

export type Clock = {
  /** Unix ms. */
  now(): number
}

export const systemClock: Clock = { now: () => Date.now() }

/** Unix seconds, as certificates count. */
export const unixSeconds = (clock: Clock): number => Math.floor(clock.now() / 1000)
