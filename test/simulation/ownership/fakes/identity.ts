// edge-node/identity.ts in the simulation: the keys and certificates that the world gave to the host.
import { hostOf } from '../host.ts'
import { processNow } from '../time.ts'

export async function loadIdentity() {
  return hostOf(processNow()).identity
}

export const loadRevocations = async () => undefined
