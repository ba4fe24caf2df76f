// A message to publish: the gateway's outbox stores it and the client sends it. Types only.
export type MqttMessage = {
  topic: string
  /** Empty and retained: deletes the retained message at the broker. */
  payload: string
  qos: 0 | 1
  retained: boolean
  expirySeconds?: number | undefined
  /** Unix ms after which it is not sent. */
  staleAtMs?: number | undefined
  schema?: string | undefined
  traceparent?: string | undefined
  correlationData?: Uint8Array | undefined
}
