// The hop's mutual authentication in the simulation: the same frames, no signatures. Both halves (edge-node/link,
// gateway/sites) are here.
import { decodeCertificate } from '../../../../crypto/certificate.ts'
import type { NodeAuthentication } from '../../../../edge-node/link/authenticate.ts'
import { createFrameStream, type FrameStream } from '../../../../transport/frames.ts'
import { Hello } from '../../../../wire/control.ts'
import { GodwitError } from '../../../../wire/errors.ts'
import type { Frame } from '../../../../wire/frame.ts'
import { checkJson, toJson } from '../../../../wire/schema.ts'
import { allow, FRAME } from '../../../../wire/types.ts'
import { VERSIONS, versionFields } from '../../../../wire/versions.ts'

const NONCE = Buffer.alloc(32).toString('base64')

export async function authenticateToGateway({ connection, purpose, incarnation, identity }: NodeAuthentication) {
  const frames = createFrameStream(await connection.openStream())
  const certificate = Buffer.from(identity.certificate).toString('base64')
  await frames.write(FRAME.HELLO, toJson({ ...versionFields(VERSIONS.link), purpose, incarnation, nonce: NONCE, certificate }))
  const frame = await frames.next(allow('WELCOME', 'ERROR'))
  if (frame?.type !== FRAME.WELCOME) throw new GodwitError('AUTH_FAILED', 'not welcome')
  return { frames, welcome: JSON.parse(new TextDecoder().decode(frame.payload)), gatewayCertificate: new Uint8Array() }
}

export const verifyGateway = (): void => {}

export async function authenticateNode(first: Frame, _: FrameStream) {
  const hello = checkJson(Hello, first.payload, { what: 'HELLO frame' })
  const certificateBytes = new Uint8Array(Buffer.from(hello.certificate, 'base64'))
  return { hello, certificate: decodeCertificate(certificateBytes), certificateBytes }
}
