// Revocation lists of a test's own root. Not a test itself.

import { issueRevocations, type Root } from '../../crypto/certificate.ts'
import { nowSeconds } from '../../ops/clock.ts'
import { armor } from '../../ops/files.ts'
import type { Store } from '../../ops/store.ts'

/** Two hours old, as the certificates of tests are: their clocks may be an hour apart. */
const AGE_SECONDS = 7200

type ListClaims = { number?: number; serials?: string[]; issuedAt?: number }

/** A list as bytes, dated two hours back unless told. */
export function listOf(root: Root, { number = 1, serials = [], issuedAt }: ListClaims = {}): Uint8Array {
  return issueRevocations(root, { number, issuedAt: issuedAt ?? nowSeconds() - AGE_SECONDS, serials })
}

/** The same as the file that godwit root revoke writes. */
export const listFileOf = (root: Root, claims: ListClaims = {}): string => armor('REVOCATIONS', listOf(root, claims))

/** A store in memory, for trust alone. `fail`: its disk refuses. */
export function memoryStore(): Store & { values: Map<string, unknown>; fail?: Error } {
  const values = new Map<string, unknown>()
  const store: Store & { values: Map<string, unknown>; fail?: Error } = {
    values,
    get: async <T>(table: string, key: string) => values.get(`${table}:${key}`) as T | undefined,
    async put(table, key, value) {
      if (store.fail) throw store.fail
      values.set(`${table}:${key}`, value)
    },
    async delete(table, key) {
      values.delete(`${table}:${key}`)
    },
    async *entries() {},
    async batch() {},
    async close() {},
  }
  return store
}
