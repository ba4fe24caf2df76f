// Before a VM is asked to come: whether it could, and room for it. Enters: what the gateway asks. Leaves: at the source
// the VM's needs, sealed for the target; at the target a preflight's answer and a hold (registry/holds.ts). No memory
// of the guest is sent: that a later data plane will do.
// Always holds: the source's own rules say whether the VM may go there (release.ts); the gateway carries the needs and
// cannot read them (Noise KK's first message, under the box keys of both certificates); a target answers only for a
// source that its own rules let in; what is held ends by itself.
import { fromBase64, toBase64, utf8 } from '../crypto/bytes.ts'
import { readMessage, startHandshake, writeMessage } from '../crypto/channel/handshake.ts'
import { hashBytes } from '../crypto/hash.ts'
import type { LoadedIdentity } from '../identity/load.ts'
import { verifySite } from '../identity/peer.ts'
import type { Trust } from '../identity/trust.ts'
import type { HoldParams, NeedsParams } from '../wire/control.ts'
import { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { parseJson, toJson } from '../wire/schema.ts'
import type { NodeConfig } from './config.ts'
import type { LinkHandlers } from './link/link.ts'
import { checkAccept } from './migration/accept.ts'
import type { Registry } from './registry/registry.ts'
import type { Release } from './release.ts'
import { needsToJson, parseNeeds } from './vm/preflight.ts'

type PrestageOptions = {
  config: NodeConfig
  identity: LoadedIdentity
  trust: Trust
  registry: Registry
  release: Release
  log: Log
}

const NEEDS_BYTES_MAX = 48 * 1024

export function createPrestage({
  config,
  identity,
  trust,
  registry,
  release,
  log,
}: PrestageOptions): Pick<LinkHandlers, 'needs' | 'hold' | 'release'> {
  const { keys } = identity
  return {
    async needs(params) {
      const { certificate } = identity
      const { holdId, vm, epoch, target, targetCertificate, method, command } = params
      const peer = await verifySite(trust, target, targetCertificate)
      const own = registry.get(vm)
      if (own.epoch !== epoch) throw new GodwitError('EPOCH_STALE', `${vm} is at epoch ${own.epoch}, not at epoch ${epoch}`)
      await release.check({ action: 'prestage', migrationId: holdId, vm, epoch, target, method, command })
      const bytes = toJson(needsToJson(await registry.needs(vm, method)))
      if (bytes.length > NEEDS_BYTES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `the needs of ${vm} have ${bytes.length} bytes`)
      const state = startHandshake({
        role: 'initiator',
        hybrid: false,
        local: keys,
        remotePublic: peer.certificate.boxPublic,
        prologue: prologueOf(params, config.site, target, certificate, peer.bytes),
      })
      return { needs: toBase64(writeMessage(state, bytes).message) }
    },
    async hold(params) {
      const { certificate } = identity
      const { holdId, vm, epoch, source, sourceCertificate, holdMs } = params
      const peer = await verifySite(trust, source, sourceCertificate)
      checkAccept(config.accept, { source, vm, target: config.site })
      const state = startHandshake({
        role: 'responder',
        hybrid: false,
        local: keys,
        remotePublic: peer.certificate.boxPublic,
        prologue: prologueOf(params, source, config.site, peer.bytes, certificate),
      })
      const { payload } = readMessage(state, fromBase64(params.needs))
      const needs = parseNeeds(parseJson(payload, { what: 'needs of the VM' }))
      if (needs.spec.name !== vm) throw new GodwitError('MIGRATION_STATE', `the needs are for ${needs.spec.name}, not for ${vm}`)
      const bytes = await registry.holdIncoming(needs, epoch + 1, { id: holdId, ms: holdMs })
      log.info('memory reserved for a VM', { vm, from: source, bytes, holdMs })
      return { memoryBytes: bytes }
    },
    async release({ holdId }) {
      if (registry.releaseHold(holdId)) log.info('memory reservation released', { holdId })
    },
  }
}

/**
 * What the needs are for, so that the message serves nothing else: neither another VM or pair of sites, nor a
 * migration's handshake.
 */
function prologueOf(
  { holdId, vm, epoch, method }: Pick<NeedsParams | HoldParams, 'holdId' | 'vm' | 'epoch' | 'method'>,
  source: string,
  target: string,
  sourceCertificate: Uint8Array,
  targetCertificate: Uint8Array,
): Uint8Array {
  const certificates = [sourceCertificate, targetCertificate].map(bytes => toBase64(hashBytes(bytes)))
  return utf8(`GWN1 ${JSON.stringify([holdId, vm, epoch, method, source, target, ...certificates])}`)
}
