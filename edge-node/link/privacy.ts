// Removes details from errors and predictions for the gateway: codes, Godwit's own texts of names and sizes, and
// rounded figures remain. Pure. Enters: errors and predictions as in the node's log. Leaves: the same without paths,
// addresses, output of QEMU, or exact figures. Always holds: a text of another program (QEMU, the system) never leaves
// the node; the removed details are in the node's own log.
import type { Prediction, Report } from '../../wire/control.ts'
import { ERRORS, type ErrorBody, type ErrorCode, GodwitError, toGodwitError } from '../../wire/errors.ts'

/** Codes with texts of Godwit only: names, states and sizes. */
const OURS =
  /^(PREFLIGHT_|VM_|SITE_|COMMAND_|CERT_|MIGRATION_(DENIED|BUSY|LATE|UNKNOWN|CANCELLED|STATE)$|RELEASE_DENIED$|EPOCH_STALE$|DOWNTIME_UNREACHABLE$|LIMIT_EXCEEDED$|REVOCATION_STALE$|VERSION_UNSUPPORTED$|NOT_AVAILABLE$|SERVICE_UNKNOWN$)/
const TEXT_MAX = 512
const PATH = /(?<![\w/])\/(?:[\w.@+~%-]+\/)*([\w.@+~%-]+)\/?/g
const IPV4 = /\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b/g
const IPV6 = /\[?(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])\]?(?::\d{1,5})?/gi
const LONG_NUMBER = /(?<=^|\s)\d{5,}(?=[\s,;:.)]|$)/g

/**
 * Text for the gateway: no folder, no address, no exact figure. The name of a file stays, because the specification
 * contains it.
 */
export const withoutDetails = (text: string): string =>
  text
    .replace(PATH, '$1')
    .replace(IPV4, '(address)')
    .replace(IPV6, '(address)')
    .replace(LONG_NUMBER, digits => String(rounded(Number(digits))))
    .slice(0, TEXT_MAX)

/** Rounds to two significant digits. */
const rounded = (figure: number): number => (Number.isFinite(figure) ? Number(figure.toPrecision(2)) : 0)

/** The error for the gateway. */
export function publicError(thrown: unknown): GodwitError {
  const { code, message, hint } = toGodwitError(thrown)
  if (!OURS.test(code)) return new GodwitError(code)
  // A hint without its paths would be wrong.
  return new GodwitError(code, withoutDetails(message), withoutDetails(hint) === hint ? { hint } : {})
}

export function publicBody({ code, message, hint }: ErrorBody): ErrorBody {
  const known = Object.hasOwn(ERRORS, code) ? (code as ErrorCode) : 'INTERNAL'
  return publicError(new GodwitError(known, message, hint === undefined ? {} : { hint })).toJSON()
}

/** A migration's report: its figures stay, and its texts lose details. */
export function publicReport(report: Report): Report {
  const { notes, decisions } = report
  return {
    ...report,
    notes: notes.map(withoutDetails),
    ...(decisions ? { decisions: decisions.map(one => ({ ...one, reason: withoutDetails(one.reason).slice(0, 256) })) } : {}),
  }
}

/** A prediction: every figure rounded. */
export const publicPrediction = (prediction: Prediction): Prediction => {
  const { reason, ...figures } = prediction
  return { ...(roundedAll(figures) as Prediction), reason: withoutDetails(reason) }
}

function roundedAll(value: unknown): unknown {
  if (typeof value === 'number') return rounded(value)
  if (Array.isArray(value)) return value.map(roundedAll)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, field]) => [key, roundedAll(field)]))
}
