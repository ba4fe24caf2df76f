// Durations and sizes in the form that people write and read. Enters: '300ms', '384MiB', numbers. Leaves: ms, bytes,
// text. Pure.

const DURATION_MS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }
const SIZE_BYTES: Record<string, number> = {
  B: 1,
  KiB: 1024,
  MiB: 1024 ** 2,
  GiB: 1024 ** 3,
  TiB: 1024 ** 4,
  kB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
}

export const DURATION_FORM = 'a number with ms, s, m, h or d, such as 300ms or 1.5s'
export const SIZE_FORM = 'a number with B, KiB, MiB, GiB or TiB (or kB, MB, GB, TB), such as 384MiB'

/** Milliseconds of '300ms', '1.5s', '30d'; undefined if it is not a duration or above 2^53. */
export const parseDuration = (text: string): number | undefined => parseWith(text, DURATION_MS)

/** Bytes of '384MiB', '1.5GiB', '100MB'; undefined if it is not a size or not a whole number of bytes. */
export function parseSize(text: string): number | undefined {
  const bytes = parseWith(text, SIZE_BYTES)
  return bytes !== undefined && Number.isInteger(bytes) ? bytes : undefined
}

function parseWith(text: string, units: Record<string, number>): number | undefined {
  const match = /^(\d{1,15}(?:\.\d{1,6})?)([A-Za-z]{1,3})$/.exec(text)
  const unit = match && Object.hasOwn(units, match[2]!) ? units[match[2]!] : undefined
  if (!match || unit === undefined) return undefined
  const value = Number(match[1]) * unit
  return value <= Number.MAX_SAFE_INTEGER ? value : undefined
}

/** '940 ms', '3.2 s', '2 min 05 s', '3 h 12 min', '30 d'. */
export function formatDuration(ms: number): string {
  if (ms < 1) return `${ms.toFixed(2)} ms`
  if (ms < 999.5) return `${Math.round(ms)} ms`
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`
  const seconds = Math.round(ms / 1000)
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, '0')} s`
  const minutes = Math.round(seconds / 60)
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, '0')} min`
  return `${Math.round(minutes / 1440)} d`
}

/** The time to an end that is foreseen: '2 min 05 s'; below a second '< 1 s', for no forecast is that exact. */
export const formatEta = (ms: number): string => (ms < 1000 ? '< 1 s' : formatDuration(ms))

/** '0 B', '12.4 KiB', '384 MiB': three or four figures. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let at = 0
  while (value >= 1023.5 && at < units.length - 1) {
    value /= 1024
    at++
  }
  return `${at === 0 || value >= 99.95 || Number.isInteger(value) ? Math.round(value) : value.toFixed(1)} ${units[at]}`
}

/** '94.2 Mbit/s' from bytes a second: link rates are given in bits. */
export function formatRate(bytesPerSecond: number): string {
  const units = ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s']
  let value = bytesPerSecond * 8
  let at = 0
  while (value >= 999.5 && at < units.length - 1) {
    value /= 1000
    at++
  }
  return `${at === 0 || value >= 99.95 ? Math.round(value) : value.toFixed(1)} ${units[at]}`
}
