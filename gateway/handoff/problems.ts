// Errors as RFC 9457 problem details, with our stable code. Pure.

import type { Problem } from '../../mqtt/schemas.ts'
import { statusOf } from '../../ops/http.ts'
import { ERRORS, type ErrorBody, fromBody, type GodwitError } from '../../wire/errors.ts'

const DETAIL_MAX = 4096
const HINT_MAX = 1024

export function problemOf(error: GodwitError): Problem {
  return {
    type: `urn:godwit:problem:${error.code}`,
    title: ERRORS[error.code].meaning,
    status: statusOf(error),
    detail: error.message.slice(0, DETAIL_MAX),
    code: error.code,
    ...(error.hint ? { hint: error.hint.slice(0, HINT_MAX) } : {}),
  }
}

export const problemOfBody = (body: ErrorBody): Problem => problemOf(fromBody(body))
