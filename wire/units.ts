// Units as numbers: sizes in bytes, times in ms. Constants only; texts such as '384MiB' are read in ops/units.ts.

export const KIB = 1024
export const MIB = 1024 * KIB

export const MINUTE_MS = 60_000
export const DAY_MS = 86_400_000
