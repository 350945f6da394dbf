declare module 'kafkajs/src/network/requestQueue/index.js' {
  /** Internal to kafkajs: the part of it that `kafka.ts` mends. */
  export default class RequestQueue {
    constructor(options: object)
    readonly pending: readonly unknown[]
    readonly throttleCheckTimeoutId: NodeJS.Timeout | null
    checkPendingRequests(): void
    scheduleCheckPendingRequests(): void
  }
}

declare module 'kafkajs/src/network/connection.js' {
  export default class Connection {
    constructor(options: object)
    chunks: Uint8Array[]
    bytesBuffered: number
    bytesNeeded: number
    isConnected(): boolean
    connect(): Promise<boolean>
    disconnect(): Promise<boolean>
  }
}
