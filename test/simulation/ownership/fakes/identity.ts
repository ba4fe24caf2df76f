// identity/load.ts in the simulation: the keys and certificates that the world gave to the host.
import { hostOf } from '../host.ts'
import { processNow } from '../time.ts'

export const renewedFile = () => ''

export async function loadIdentity() {
  return hostOf(processNow()).identity
}
