// A host of the simulation as a node has it (edge-node/node-host.ts): the keys and certificates that the world gave to
// the host, its disk, its VMs.
// Always holds: certificates outlive every run, and each node has a fresh list of the root that revokes nobody.

import { verifyCertificate } from '../../../../crypto/certificate.ts'
import type { NodeHost } from '../../../../edge-node/node-host.ts'
import { systemClock, unixSeconds } from '../../../../ops/clock.ts'
import { hostOf } from '../host.ts'
import { processNow } from '../time.ts'
import { memoryPath } from './memory-path.ts'
import { openStore } from './store.ts'
import { vmHost } from './vm-host.ts'

export const nodeHost: NodeHost = {
  loadIdentity: async () => hostOf(processNow()).identity!,
  openTrust: async ({ rootPublic }) => ({
    rootPublic,
    list: () => undefined,
    signed: () => undefined,
    ageSeconds: () => 0,
    requireFresh() {},
    verify: (certificate, who) => verifyCertificate(certificate, { rootPublic, now: unixSeconds(systemClock), ...who }),
    offer: async () => 0,
    refresh: async () => {},
    settled: async () => {},
    watch: () => () => {},
    close: async () => {},
  }),
  keepRenewed: () => ({ look: async () => {}, close: () => {} }),
  openStore: (_, options) => openStore(options),
  serveHttp: async () => ({ address: { host: 'none', port: 0 }, close: async () => {} }),
  vms: vmHost,
  memoryPath,
  measureMemory: () => Promise.reject(new Error('nobody asks what a migration will take')),
}
